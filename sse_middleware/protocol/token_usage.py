"""The token usage that LLM providers report, in their formats.

    OpenAI      usage: {prompt_tokens, completion_tokens}, or {input_tokens, output_tokens}, which
                is also that of Qwen's own API; with *_tokens_details.cached_tokens
    Anthropic   usage: {input_tokens, output_tokens, cache_read_input_tokens, ...}, without the
                cached tokens in input_tokens; first in `message`, later in the event itself
    Google      usageMetadata: {promptTokenCount, candidatesTokenCount, thoughtsTokenCount, ...}

Usage is reported in one event or in several, as the total so far; fields may be missing in later
ones. The values come from another service: any that is no whole number from 0 is ignored.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sse_middleware.observability.source_record import TokenUsage
from sse_middleware.protocol.parser import Event

_MOST_TOKENS: Final = 10**12
"""A larger number is an error of the provider."""
_INPUT: Final = ("prompt_tokens", "input_tokens", "promptTokenCount", "prompt_token_count")
_OUTPUT: Final = (
    "completion_tokens",
    "output_tokens",
    "candidatesTokenCount",
    "candidates_token_count",
)
_ALSO_INPUT: Final = ("cache_read_input_tokens", "cache_creation_input_tokens")
_ALSO_OUTPUT: Final = ("thoughtsTokenCount", "thoughts_token_count")
_CACHE_READ: Final = (
    "cache_read_input_tokens",
    "cachedContentTokenCount",
    "cached_content_token_count",
)
_CACHE_WRITE: Final = ("cache_creation_input_tokens",)
_DETAILS: Final = ("prompt_tokens_details", "input_tokens_details")
_KEYS: Final = frozenset((*_INPUT, *_OUTPUT, *_ALSO_INPUT, *_ALSO_OUTPUT, *_CACHE_READ))
_PLACES: Final = ("usage", "usageMetadata", "usage_metadata")
_OUTER: Final = ("message", "response")
"""Anthropic's `message_start`, and OpenAI's `response.completed`."""


def read_usage(report: object) -> tuple[TokenUsage, str] | None:
    """Return the usage in a report and the name of the model, `None` if it has no usage.

    Args:
        report: an `Event` with JSON data; or a mapping or an object of an SDK: a response, an event
            of a stream, or the usage itself.

    Returns:
        The usage, and the name of the model, `""` if the report does not have it.
    """
    data = _mapping(report)
    if data is None:
        return None
    for part in (data, *(inner for key in _OUTER if (inner := _mapping(data.get(key))))):
        for usage in _candidates(part):
            if not _KEYS.isdisjoint(usage):
                model = part.get("model") or part.get("modelVersion") or part.get("model_version")
                return _read(usage), model if isinstance(model, str) else ""
    return None


def _candidates(part: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for place in _PLACES:
        if (usage := _mapping(part.get(place))) is not None:
            yield usage
    yield part


def _mapping(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Event):
        return _parsed(value.data)
    dump = getattr(value, "model_dump", None) or getattr(value, "to_dict", None)
    if dump is not None:  # an object of Pydantic, as SDKs have them
        return _mapping(dump())
    return None


def _parsed(data: str) -> Mapping[str, Any] | None:
    # Most events have no usage, and are not parsed.
    if "usage" not in data:
        return None
    try:
        return _mapping(json.loads(data))
    except (ValueError, RecursionError):
        return None


def _read(usage: Mapping[str, Any]) -> TokenUsage:
    details = [found for key in _DETAILS if (found := _mapping(usage.get(key)))]
    cached = [_first(usage, _CACHE_READ), *(_number(one.get("cached_tokens")) for one in details)]
    return TokenUsage(
        _first(usage, _INPUT) + sum(_number(usage.get(key)) for key in _ALSO_INPUT),
        _first(usage, _OUTPUT) + _first(usage, _ALSO_OUTPUT),
        max(cached),
        _first(usage, _CACHE_WRITE),
    )


def _first(usage: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    return next((_number(usage[key]) for key in keys if key in usage), 0)


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        return 0
    return value if 0 <= value <= _MOST_TOKENS else 0
