"""Channels in memory, and the parts that all kinds of storage share."""

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from typing import Any

import pytest

from sse_middleware import ConfigurationError, EventFormatError
from sse_middleware.channels import (
    BlockingPublisher,
    Publisher,
    publish_event,
    sse_event_streamer,
    subscribe,
)
from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import (
    BEGINNING,
    EMPTY,
    Position,
    StoredEvent,
    outgoing_event,
    parse_entry,
    parse_number,
    read_result,
)
from sse_middleware.channels.memory import ChannelMemory
from tests.support.channel_contract import ChannelContract, new_channel, whole

pytestmark = pytest.mark.anyio


class TestInMemory(ChannelContract):
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"  # threads and what expires go by real time


BAD_CHANNELS = ["", " ", "a b", "a\n", "é", "x" * 201, "\0", "a\x7f"]


@pytest.mark.parametrize("channel", BAD_CHANNELS)
async def test_a_channel_has_a_name_that_fits(channel: str) -> None:
    with pytest.raises(EventFormatError, match="1 to 200 visible ASCII"):
        subscribe(channel)  # at once, so that a handler can still refuse
    with pytest.raises(EventFormatError, match="channel is"):
        await Publisher("").publish(channel, "step", 1)


def test_a_bad_name_is_not_repeated_for_it_may_be_a_secret() -> None:
    with pytest.raises(EventFormatError) as refused:
        subscribe("s3cret token")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("event", ["", "a\nb", "a\rb", "\0", "x" * 129])
async def test_an_event_has_a_name_that_fits(event: str) -> None:
    with pytest.raises(EventFormatError, match="event is"):
        await Publisher("").publish("channel", event, 1)


@pytest.mark.parametrize("key", ["", " ", "é", "x" * 201])
async def test_a_key_fits(key: str) -> None:
    with pytest.raises(EventFormatError, match="key is"):
        await Publisher("").publish("channel", "step", 1, key=key)


def test_arguments_of_readers_are_validated_at_once() -> None:
    for name in ("ack_timeout", "idle_timeout"):
        for value in (0, -1, float("nan")):
            with pytest.raises(ConfigurationError, match=name):
                subscribe("channel", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="idle_timeout is 'long'"):
        subscribe("channel", idle_timeout="long")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="compat is 'kafka', allowed is sse_session"):
        subscribe("channel", compat="kafka")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="set SSE_REDIS_URL to the Redis of the workers"):
        sse_event_streamer("channel", compat="sse_session", url="")
    with pytest.raises(ConfigurationError, match="terminal"):
        subscribe("channel", terminal="done")


def test_a_publisher_takes_the_options_of_the_middleware() -> None:
    with pytest.raises(ConfigurationError, match="channel_ttl"):
        Publisher("", channel_ttl=0)
    with pytest.raises(ConfigurationError, match="redis_url"):
        BlockingPublisher("http://localhost")
    with pytest.raises(TypeError, match="no such option"):
        Publisher("", paper="A4")  # type: ignore[call-arg]


def test_an_invalid_variable_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSE_CHANNEL_MAX_EVENTS", "0")
    with pytest.raises(ConfigurationError, match="SSE_CHANNEL_MAX_EVENTS"):
        Publisher("")


async def test_the_usual_times_are_ten_seconds_for_a_worker_and_300_for_its_next_event() -> None:
    channel, loop = new_channel(), asyncio.get_running_loop()
    began = loop.time()
    (event,) = await whole_in_time(channel)
    assert event == "error"
    assert loop.time() == pytest.approx(began + 10, abs=0.1)
    await publish_event(channel, "worker_ack", {})
    began = loop.time()
    reading = asyncio.ensure_future(whole_in_time(channel))
    await asyncio.sleep(290)
    await publish_event(channel, "step", {})
    assert await reading == ["worker_ack", "step", "error"]
    assert loop.time() == pytest.approx(began + 590, abs=0.1)


async def test_a_reader_that_needs_no_worker_has_no_times() -> None:
    channel = new_channel()
    reading = asyncio.ensure_future(whole_in_time(channel, ack_timeout=None))
    await asyncio.sleep(3000)
    await publish_event(channel, "step", {})
    await asyncio.sleep(3000)
    await publish_event(channel, "complete", {})
    assert await reading == ["step", "complete"]


async def whole_in_time(channel: str, **options: Any) -> list[str]:
    return [event.event async for event in subscribe(channel, url="", **options)]


def limits(**given: float) -> Limits:
    return Limits(**given)  # type: ignore[arg-type]


def test_all_channels_together_take_so_much_memory() -> None:
    memory = ChannelMemory(max_total_bytes=100_000)
    for number in range(100):
        post = outgoing_event(f"channel-{number}", "step", "x" * 1000, None, 1 << 20)
        assert memory.publish(post, Limits())
    assert 10 < len(memory) < 40
    assert memory.last_event("channel-99").position.number == 1
    assert memory.last_event("channel-0").position == EMPTY


def test_memory_is_counted_as_it_is_taken() -> None:
    gc.collect()
    tracemalloc.start()
    memory = ChannelMemory()
    for number in range(2000):
        memory.publish(
            outgoing_event(f"c{number % 20}", "step", f"{number:060}", None, 1 << 20), Limits()
        )
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.4 * taken < memory.total_bytes < 3 * taken


def test_channels_in_memory_go_with_their_time() -> None:
    now = 0.0
    memory = ChannelMemory(clock=lambda: now)
    memory.publish(outgoing_event("long", "step", 1, None, 100), limits(ttl=100.0))
    memory.publish(outgoing_event("short", "step", 1, None, 100), limits(ttl=1.0))
    now = 2.0
    assert memory.last_event("short").position == EMPTY
    assert memory.last_event("long").position.number == 1
    now = 101.0
    assert len(memory) == 0
    assert memory.total_bytes == 0


def test_a_thread_may_publish_while_loops_of_other_threads_read() -> None:
    channel = new_channel()
    found: list[list[str]] = []

    def read() -> None:
        found.append(asyncio.run(whole_in_time(channel)))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    with BlockingPublisher("") as publisher:
        publisher.ack(channel)
        for number in range(200):
            publisher.publish(channel, "step", number)
        publisher.finish(channel)
    for reader in readers:
        reader.join(10)
    assert found == [["worker_ack", *["step"] * 200, "complete"]] * 4


FORKING = """
    import asyncio, os
    from sse_middleware.channels import BlockingPublisher, subscribe
    from sse_middleware.channels.settings import MEMORY
    publisher = BlockingPublisher("")
    publisher.publish("channel", "parent", 1)
    MEMORY()._lock.acquire()  # as another thread may hold it in that moment
    child = os.fork()
    if child:
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    publisher.finish("channel")
    async def read():
        return [event.event async for event in subscribe("channel", url="")]
    os._exit(asyncio.run(read()) != ["complete"])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_process_that_was_forked_has_a_memory_of_its_own() -> None:
    command = [sys.executable, "-c", textwrap.dedent(FORKING)]
    subprocess.run(command, check=True, timeout=30)


def entry(number: int) -> tuple[str, StoredEvent]:
    return f"{number}-0", StoredEvent(Position(f"{number}-0", number), "step", "1")


def test_a_page_has_no_holes() -> None:
    assert read_result([], BEGINNING).position == EMPTY
    page = read_result([entry(7), ("7-1", None), entry(8)], BEGINNING)
    assert [one.number for one in page.entries] == [7, 8]
    assert page.is_whole
    page = read_result([entry(7), entry(9)], Position("6-0", 6))
    assert [one.number for one in page.entries] == [7]
    assert not page.is_whole
    assert read_result([("9-9", None)], Position("6-0", 6)).position == Position("9-9", 6)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"", b"1"),
        (b"st\nep", b"1"),
        (b"\xff", b"1"),
        (b"step", b"no json"),
        (b"step", b'"\xff"'),
        (b"step", b"[1,\n2]"),
        (b"step", b"[" * 100_000),
        (b"step", b""),
    ],
)
def test_a_malformed_entry_is_none(event: bytes, data: bytes) -> None:
    assert parse_entry(Position("1-0", 1), event, data) is None
    assert parse_entry(Position("1-0", 1), b"step", b'{"a":1}') is not None
    assert parse_entry(Position("1-0", 1), b"step", b' {"a":1} ') is not None


@pytest.mark.parametrize("text", [b"", b"x", b"0", b"-1", b"1\n", b"9" * 5000])
def test_a_malformed_number_of_an_entry_is_none(text: bytes) -> None:
    assert parse_number(text) is None
    assert parse_number(b"12") == 12


async def test_an_event_is_written_once_for_all_its_readers() -> None:
    channel = new_channel()
    await publish_event(channel, "complete", {})
    one, other = await whole(subscribe(channel)), await whole(subscribe(channel))
    assert one[0] is other[0]
