"""Ways to parse and split a stream, for the tests of the wire format.

Each case runs whole, byte by byte, cut in two at every place, and with an unfinished rest.
"""

from collections.abc import Iterable

from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.wire import Kind, Piece


def bytewise(stream: bytes) -> list[bytes]:
    return [stream[at : at + 1] for at in range(len(stream))]


def parse(chunks: Iterable[bytes]) -> tuple[list[Event], str, int | None]:
    parser = EventParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    return events, parser.last_event_id, parser.retry


def block(data: bytes) -> Piece:
    return (Kind.BLOCK, data)


def line(data: bytes) -> Piece:
    return (Kind.LINE, data)
