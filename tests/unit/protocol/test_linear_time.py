"""The splitter, the parser and the intake take time in proportion to the length of the stream.

Each test compares the CPU time of two parts of the same run, so the speed and the load of the
machine do not matter. Each figure is the best of several, because a disturbance only adds time.
"""

import time
from collections.abc import Callable

import pytest

from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.parser import EventParser
from sse_middleware.protocol.wire import Splitter
from tests.support.dialects import new_intake

pytestmark = pytest.mark.python_only

Feed = Callable[[bytes], object]


def splitter_feed() -> Feed:
    return Splitter(1 << 30).feed


def bounded_splitter_feed() -> Feed:
    return Splitter(1024).feed


def parser_feed() -> Feed:
    return EventParser().feed


def intake_feed() -> Feed:
    feed = new_intake(ClientKind.EVENTSOURCE).feed
    return lambda chunk: feed(chunk, 0.0)


FEEDS = [splitter_feed, bounded_splitter_feed, parser_feed, intake_feed]


def cpu_seconds(feed: Feed, chunks: list[bytes]) -> float:
    begin = time.process_time()
    for chunk in chunks:
        feed(chunk)
    return time.process_time() - begin


STREAMS = {
    "one endless line": b"d" * 60_000,
    "one endless comment": b":" * 60_000,
    "many lines of one block": b"data: a\r\n" * 6_000,
    "many comment lines": b": a\n" * 10_000,
    "many empty lines": b"\n" * 10_000,
    "many blocks": b"data: a\r\n\r\n" * 5_000,
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
@pytest.mark.parametrize("new_feed", FEEDS)
@pytest.mark.parametrize("chunk_size", [16, 1 << 30], ids=["small chunks", "one chunk"])
def test_time_grows_in_proportion_to_the_stream(
    new_feed: Callable[[], Feed], stream: bytes, chunk_size: int
) -> None:
    def chunks(stream: bytes) -> list[bytes]:
        return [stream[at : at + chunk_size] for at in range(0, len(stream), chunk_size)]

    once, four_times = chunks(stream), chunks(stream * 4)
    shortest = longest = float("inf")
    for _ in range(20):
        shortest = min(shortest, cpu_seconds(new_feed(), once))
        longest = min(longest, cpu_seconds(new_feed(), four_times))
        # Linear is 4, quadratic is 16. The clock cannot resolve less than a millisecond.
        if longest < 8 * max(shortest, 0.001):
            return
    pytest.fail(f"four times the stream takes {longest / shortest:.1f} times as long")


@pytest.mark.slow
@pytest.mark.parametrize("byte", [b"d", b":", b"\n"], ids=["line", "comment", "empty lines"])
@pytest.mark.parametrize("new_feed", FEEDS)
def test_each_byte_of_a_megabyte_takes_the_same_time(
    new_feed: Callable[[], Feed], byte: bytes
) -> None:
    feed = new_feed()
    part = [byte] * 25_000
    parts = [cpu_seconds(feed, part) for _ in range(40)]
    # If each byte searched all bytes before it, the last parts would take 10 times as long.
    assert min(parts[-10:]) < 4 * min(parts[:10])
