"""The streams of the wire tests, and the events that our own parser returns for them.

`wire.test.mjs` compares the browser client with `corpus.json`, which
`python -m tests.browser_client.test_corpus` writes.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sse_middleware import EventParser
from tests.unit.protocol import test_linear_time, test_parser, test_splitter, test_wire

CORPUS = Path(__file__).parent / "corpus.json"
SHORT = 200
"""Bytes. Longer streams are left out, because each one is cut at every position."""


def streams() -> Iterator[bytes]:
    """Yield the streams in the parameters of the tests."""
    ends = (b"\n", b"\r", b"\r\n")
    modules = (test_parser, test_splitter, test_wire, test_linear_time)
    for test in [test for module in modules for test in vars(module).values()]:
        for mark in getattr(test, "pytestmark", ()):
            for parameters in (mark.args or ((), ()))[-1]:
                for value in getattr(parameters, "values", (parameters,)):
                    if isinstance(value, list) and all(isinstance(one, bytes) for one in value):
                        yield b"".join(value)
                    elif isinstance(value, bytes):
                        yield from (value.replace(b"\n", end) for end in ends)
    for value in ("0", "2000", "007", "-1", "1.5", "1e3", " 1", "1 ", "\u0665", "9" * 18, "9" * 19):
        yield f"retry: 5\nretry: {value}\n\n".encode()


def read(stream: bytes) -> dict[str, Any]:
    """Return a stream with the events that a client dispatches for it."""
    parser = EventParser()
    events: list[list[object]] = []
    for number in range(len(stream)):  # byte by byte, to read the id after each event
        events += [
            [event.event, event.data, parser.last_event_id, event.id is not None]
            for event in parser.feed(stream[number : number + 1])
        ]
    return {
        "stream": base64.b64encode(stream).decode(),
        "events": events,
        "lastEventId": parser.last_event_id,
        "retry": parser.retry,
    }


def corpus() -> str:
    """Return all streams with their events as JSON, one stream on a line."""
    found = dict.fromkeys(stream for stream in streams() if len(stream) <= SHORT)
    lines = ",\n".join(json.dumps(read(stream)) for stream in found)
    return f"[\n{lines}\n]\n"


def test_corpus_matches_the_wire_tests() -> None:
    assert CORPUS.read_text() == corpus()
    assert corpus().count("\n") > 250


if __name__ == "__main__":
    CORPUS.write_text(corpus())
