"""Find the part of an event's data that JSON cannot encode, for the message of the error."""

import math
from collections.abc import Iterator
from typing import Any, Final

_DEEPEST: Final = 100
_LONGEST_KEY: Final = 40  # characters


def description(data: object) -> str:
    """Return what cannot be encoded and where it is, without any value."""
    return f"not JSON ({next(_problems('data', data, _DEEPEST), type(data).__name__)})"


def _problems(path: str, value: Any, depth: int) -> Iterator[str]:
    if depth == 0:
        yield f"nested more than {_DEEPEST} times, or in itself"
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str | int | float | None):
                yield f"a key of the type {type(key).__name__} in {path}"
            yield from _problems(f"{path}[{ascii(key)[:_LONGEST_KEY]}]", inner, depth - 1)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _problems(f"{path}[{number}]", inner, depth - 1)
    elif problem := _problem(value):
        yield f"{problem} in {path}"


def _problem(value: Any) -> str:
    """Return why a value that contains no others cannot be encoded, `""` if it can."""
    if isinstance(value, str):
        has_surrogate = any("\ud800" <= character <= "\udfff" for character in value)
        return "text with a lone surrogate" * has_surrogate
    if isinstance(value, float):
        return "" if math.isfinite(value) else str(value)
    return "" if value is None or isinstance(value, int) else f"a {type(value).__name__}"
