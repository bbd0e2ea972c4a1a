"""Answers of an app: events for its clients, and random bytes in random chunks by a seed."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

_WORDS = ("to", "be", "continued", "ünïcödé", "🚀", "日本語", "\u2028", "", " ", ":", "data: x")
_NO_EVENTS = (b": a comment of the app", b"", b"event: x", b"retry: 1000", b"unknown: field")
_BLANK_LINE = re.compile(rb"(?:\r\n|\n){2}")
_HAS_DATA = re.compile(rb"(?:^|\A\xef\xbb\xbf)data(?=[:\r\n])", re.MULTILINE)


def json_event(value: Any, event: str = "") -> bytes:
    """Return an event with a JSON value, as the servers of SDKs send it."""
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def numbers(count: int) -> list[bytes]:
    """Return events with the numbers from 1."""
    return [b"data: %d\n\n" % number for number in range(1, count + 1)]


def random_answer(seed: str) -> bytes:
    """Return the bytes of an answer: events, other blocks, and often a tail that is no event."""
    rng = random.Random(seed)
    answer = b"data: 1\n\n" + b"".join(_random_block(rng) for _ in range(rng.randint(1, 40)))
    first = rng.choice((b"", b"", b"\xef\xbb\xbf", b"\n", b": hello\n\n"))
    return first + answer + rng.choice((b"", b"", b": bye\n\n", b"data: a tail", b"retry: 10\n\n"))


def random_chunks(seed: str, data: bytes) -> Iterator[bytes]:
    """Divide bytes anywhere: into single bytes, parts of events, or many events at once."""
    rng = random.Random(seed)
    longest = rng.choice((9, 40, 400, 4000))
    while data:
        size = rng.randint(1, longest)
        yield data[:size]
        data = data[size:]


def whole_events(data: bytes) -> tuple[int, int]:
    """Return the number of whole events in the first bytes of an answer, and their length.

    This is what a client with a parser of its own does; the answer has no line that ends in CR.
    """
    count, begin, end = 0, 0, 0
    for found in _BLANK_LINE.finditer(data):
        if _HAS_DATA.search(data, begin, found.end()):
            count, end = count + 1, found.end()
        begin = found.end()
    return count, end


def _random_block(rng: random.Random) -> bytes:
    line_end = rng.choice((b"\n", b"\n", b"\r\n"))
    if rng.random() < 0.2:
        return rng.choice(_NO_EVENTS) + rng.choice((1, 2, 2)) * line_end
    lines = [b"data: " + _random_text(rng) for _ in range(rng.choice((1, 1, 1, 3)))]
    if rng.random() < 0.3:
        lines.insert(0, b"event: token")
    if rng.random() < 0.1:
        lines.insert(0, b": inside an event")
    return line_end.join(lines) + 2 * line_end


def _random_text(rng: random.Random) -> bytes:
    if rng.random() < 0.05:
        return rng.randbytes(20).translate(None, b"\r\n")
    words = rng.choices(_WORDS, k=rng.choice((1, 5, 5, 20, 100)))
    return " ".join(words).encode()
