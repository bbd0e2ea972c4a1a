"""Faults of Redis, the network and the machine: writes of live streams do not block, readers are
notified of missing events, and afterwards everything works again."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path
from typing import Any, Self

import pytest

from sse_middleware.errors import StoreError
from sse_middleware.stores.base import Batch, EventStore, LogState
from sse_middleware.stores.redis import RedisStore, inbox
from sse_middleware.testing import FakeStream, Reader
from sse_middleware.testing.streams import eventually
from tests.support.redis_refusals import full, read_only, without_replicas
from tests.support.redis_server import Proxy, RedisServer
from tests.support.waiting import HANG_SECONDS

# The tests that `test_worker_faults` has too, with workers, are slow.
pytestmark = pytest.mark.anyio

LEASE_SECONDS = 2.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _readers_announce_themselves_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process does so, and looks for lost logs, three times in this time."""
    monkeypatch.setattr(inbox, "PRESENCE_SECONDS", 3.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


@asynccontextmanager
async def store_at(place: RedisServer | Proxy, **options: Any) -> AsyncGenerator[RedisStore]:
    store = RedisStore(place.url, lease_seconds=LEASE_SECONDS, **options)
    try:
        yield store
    finally:
        await store.close()


class Follower:
    """A reader that resumes after each failure of the store.

    Attributes:
        reader: checks and keeps the events.
        refusals: the number of failures.
    """

    def __init__(self, store: EventStore, stream_id: str) -> None:
        self.reader = Reader(store, stream_id)
        self.refusals = 0
        self._store = store
        self._stream_id = stream_id
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        (failure,) = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(failure, Exception):
            raise failure

    async def until(self, number: int) -> None:
        async def last() -> int:
            assert self._task is not None
            if self._task.done():
                self._task.result()
            return self.reader.last

        await eventually(last, lambda got: got >= number, f"the client was to have {number}")

    async def until_end(self) -> LogState:
        assert self._task is not None
        async with asyncio.timeout(HANG_SECONDS):
            await asyncio.shield(self._task)
        assert self.reader.end is not None
        return self.reader.end.state

    @property
    def is_whole(self) -> bool:
        """Whether it has received every event, without a hole."""
        return self.reader.numbers == list(range(1, self.reader.last + 1))

    async def _read(self) -> None:
        while self.reader.end is None:
            try:
                follow = self._store.follow(self._stream_id, self.reader.last)
                async with aclosing(follow) as batches:
                    async for batch in batches:
                        self.reader.take(batch)
            except StoreError:
                self.refusals += 1
                await asyncio.sleep(0.1)


async def visible(store: EventStore, stream_id: str, last: int = 0) -> None:
    async def ask() -> int:
        try:
            found = await store.find(stream_id)
        except StoreError:
            return -1
        return -1 if found is None else found.last

    await eventually(ask, lambda got: got >= last, f"{stream_id} was to be found at {last}")


async def write_for(stream: FakeStream, seconds: float) -> None:
    """Write as a live stream does, and check that writes do not block.

    A write that waits for Redis takes longer than the pause after it; a process that is not
    scheduled makes a few of both longer.
    """
    writes, pauses = list[float](), list[float]()
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        stream.write()
        written = time.monotonic()
        await asyncio.sleep(0.02)
        writes.append(written - began)
        pauses.append(time.monotonic() - written)
    assert statistics.median(writes) < statistics.median(pauses)


async def check_that_all_works(here: RedisStore, there: RedisStore) -> None:
    stream = FakeStream(here)
    stream.log.set_name(stream.id)
    stream.write(3)
    await visible(there, stream.id, 3)
    async with Follower(there, stream.id) as client:
        await client.until(3)
        await stream.producer.until_notified("followed")
        assert await there.find_named(stream.id) is not None
        assert await there.cancel(stream.id)
        await stream.producer.until_cancelled()
        stream.write(2)
        stream.log.end(LogState.CANCELLED)
        assert await client.until_end() is LogState.CANCELLED
    assert client.reader.numbers == [1, 2, 3, 4, 5]


@pytest.mark.slow
async def test_redis_restarted_empty(server: RedisServer) -> None:
    async with store_at(server) as here, store_at(server) as there:
        stream, silent, ended = FakeStream(here), FakeStream(here), FakeStream(here)
        for one in (stream, silent, ended):
            one.write(3)
            await visible(there, one.id, 3)
        ended.log.end(LogState.FINISHED)
        async with (
            Follower(there, stream.id) as far,
            Follower(here, stream.id) as near,
        ):
            async with Follower(there, silent.id) as of_silent:
                for client in (far, near, of_silent):
                    await client.until(3)
                await write_for(stream, 0.5)
                server.restart()
                await write_for(stream, 3.0)
                for client in (far, near):
                    await client.until(stream.last)
                silent.write(1)
                await of_silent.until(4)
                assert of_silent.reader.numbers == [1, 2, 3, 4]
            stream.log.end(LogState.FINISHED)
            for client in (far, near):
                assert await client.until_end() is LogState.FINISHED
        late = await Reader(there, stream.id).read_all()
        assert late.holes[0][0] == 1
        assert late.last == stream.last
        assert (await Reader(there, ended.id, 3).read_all()).end is not None
        await check_that_all_works(here, there)


FUTURE = 9_999_999_999_999


def empty(server: RedisServer, inbox: str) -> None:
    server.client.flushall()


def restart(server: RedisServer, inbox: str) -> None:
    server.restart()


def fail_over(server: RedisServer, inbox: str) -> None:
    """Lose the last messages and all connections, as in the failover to a replica that lags."""
    with server.client.pipeline() as pipe:
        pipe.delete(inbox)
        pipe.xadd(inbox, {"w": "news x"}, id=f"{FUTURE - 5000}-0")
        pipe.client_kill_filter(_type="normal", skipme=True)
        pipe.execute()


@pytest.mark.parametrize("fault", [empty, restart, fail_over])
async def test_messages_arrive_though_the_clock_of_redis_was_set_back(
    server: RedisServer, fault: Callable[[RedisServer, str], None]
) -> None:
    async with store_at(server) as here, store_at(server) as there:
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream.id, 3)
        client = here._session().client
        inbox = client.keys.inbox(client.process)
        # As if the clock had been ahead until now.
        await eventually(exists(server, inbox), lambda found: found, "there is no inbox")
        server.client.xadd(inbox, {"w": "news x"}, id=f"{FUTURE}-0")

        async def last_message() -> int:
            return client._last_message

        await eventually(last_message, lambda got: got == FUTURE, "the message was not read")
        fault(server, inbox)
        await visible(there, stream.id)
        await eventually(exists(server, inbox), lambda found: found, "there is no inbox")
        assert await there.cancel(stream.id)
        await stream.producer.until_cancelled()
        await check_that_all_works(here, there)


def exists(server: RedisServer, key: str) -> Callable[[], Awaitable[bool]]:
    async def ask() -> bool:
        return bool(server.client.exists(key))

    return ask


@pytest.mark.slow
async def test_redis_stopped(server: RedisServer) -> None:
    async with store_at(server) as here, store_at(server) as there:
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream.id, 3)
        async with (
            Follower(there, stream.id) as far,
            Follower(here, stream.id) as near,
        ):
            await far.until(3)
            with server.stopped():
                await write_for(stream, 3.0)
            for client in (far, near):
                await client.until(stream.last)
                assert client.is_whole
            assert far.refusals
            stream.log.end(LogState.FINISHED)
            for client in (far, near):
                assert await client.until_end() is LogState.FINISHED
        await check_that_all_works(here, there)


refusing = pytest.mark.parametrize("refuses_writes", [full, without_replicas, read_only])
Fault = Callable[[RedisServer], AbstractContextManager[None]]


@refusing
async def test_redis_refuses_writes(server: RedisServer, refuses_writes: Fault) -> None:
    async with (
        store_at(server, timeout=HANG_SECONDS) as here,
        store_at(server, timeout=HANG_SECONDS) as there,
    ):
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream.id, 3)
        async with (
            Follower(there, stream.id) as far,
            Follower(here, stream.id) as near,
        ):
            await far.until(3)
            with refuses_writes(server):
                unkept = FakeStream(here)
                unkept.log.set_name("chat")
                unkept.write(3)
                await write_for(stream, 1.5 * LEASE_SECONDS)
                # The process that runs the streams has their events, and no other one has.
                await near.until(stream.last)
                assert far.reader.last == 3
                for one in (stream, unkept):
                    async with Follower(here, one.id) as again:
                        await again.until(one.last)
                        assert again.is_whole
                named = await here.find_named("chat")
                assert named is not None
                assert named.info == unkept.info
                unkept.log.end(LogState.FINISHED)
                async with Follower(here, unkept.id) as again:
                    assert await again.until_end() is LogState.FINISHED
            for client in (far, near):
                await client.until(stream.last)
                assert client.is_whole
            assert far.refusals  # it was told to come back
            assert not near.refusals
            await visible(there, unkept.id, 3)
            named = await there.find_named("chat")
            assert named is not None
            assert named.info.stream_id == unkept.id
            assert here._session().writer.unnamed == {}
        await check_that_all_works(here, there)


@refusing
async def test_events_that_are_dropped_while_redis_refuses_writes_are_reported(
    server: RedisServer, refuses_writes: Fault
) -> None:
    async with (
        store_at(server, timeout=HANG_SECONDS, max_events=10) as here,
        store_at(server, timeout=HANG_SECONDS) as there,
    ):
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream.id, 3)
        with refuses_writes(server):
            stream.write(40)
            async with Follower(here, stream.id) as near:
                await near.until(43)
                assert near.reader.holes[-1][1] >= 30
        await visible(there, stream.id, 43)
        async with Follower(there, stream.id) as far:
            await far.until(43)
            assert far.reader.holes


@contextmanager
def losing_writes(server: RedisServer, stream_id: str) -> Iterator[None]:
    """Lose what is written meanwhile, as in the failover to a replica that lags."""
    keys = [key for key in server.all_keys() if stream_id in key]
    kept: dict[str, Any] = {key: server.client.dump(key) for key in keys}
    yield
    for key, value in kept.items():
        server.client.restore(key, 60_000, value, replace=True)


@pytest.mark.parametrize("lost", [0, 2], ids=["the end", "events and the end"])
@pytest.mark.parametrize("returns", ["here", "there"])
async def test_an_end_that_a_failover_has_lost_is_written_again(
    server: RedisServer, lost: int, returns: str
) -> None:
    async with store_at(server) as here, store_at(server) as there:
        stream = FakeStream(here, keep_seconds=3600.0)
        stream.write(3)
        await visible(there, stream.id, 3)
        with losing_writes(server, stream.id):
            stream.write(lost)
            stream.log.end(LogState.FINISHED, b"event: complete\n\n")
            await stream.log.flush()
        reader = Reader(here if returns == "here" else there, stream.id, 1)
        await reader.read_all()
        assert reader.end == Batch(LogState.FINISHED, 3 + lost, b"event: complete\n\n")
        assert reader.holes == ([(4, 5)] if lost else [])
        found = await there.find(stream.id)
        assert found is not None
        assert found.state is LogState.FINISHED
        keys = [key for key in server.all_keys() if stream.id in key]
        assert all(server.client.pttl(key) > 3_000_000 for key in keys)


async def test_a_reader_that_follows_receives_an_end_that_a_failover_has_lost(
    server: RedisServer,
) -> None:
    async with Proxy(server) as proxy, store_at(server) as here, store_at(proxy) as there:
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream.id, 3)
        async with Follower(there, stream.id) as far:
            await far.until(3)
            with proxy.partition(), losing_writes(server, stream.id):
                stream.log.end(LogState.FINISHED)
                await stream.log.flush()
            assert await far.until_end() is LogState.FINISHED


async def test_a_log_that_its_process_does_not_know_is_lost(server: RedisServer) -> None:
    async with store_at(server) as here, store_at(server) as there:
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream.id, 3)
        with losing_writes(server, stream.id):
            stream.log.end(LogState.FINISHED)
            await stream.log.flush()
        here._session()._ended._ends.clear()  # as after the time for which it is kept
        for store in (here, there):
            reader = await Reader(store, stream.id).read_all()
            assert reader.end == Batch(LogState.LOST, 3, b"")


@pytest.mark.slow
async def test_one_side_is_cut_off(server: RedisServer) -> None:
    async with Proxy(server) as proxy:
        await play_a_partition(server, proxy)

        async def connections() -> int:
            return proxy.connections

        await eventually(connections, lambda count: count == 0, "the store keeps a connection")


async def play_a_partition(server: RedisServer, proxy: Proxy) -> None:
    async with store_at(proxy) as here, store_at(server) as there:
        stream, theirs = FakeStream(here), FakeStream(there)
        stream.write(3)
        theirs.write(3)
        await visible(there, stream.id, 3)
        await visible(here, theirs.id, 3)
        async with (
            Follower(here, theirs.id) as cut_off,
            Follower(there, stream.id) as far,
        ):
            await cut_off.until(3)
            await far.until(3)
            proxy.cut()
            await asyncio.gather(
                write_for(stream, 2 * LEASE_SECONDS), write_for(theirs, 2 * LEASE_SECONDS)
            )
            assert await far.until_end() is LogState.LOST
            assert cut_off.refusals
            proxy.heal()
            await cut_off.until(theirs.last)
            assert cut_off.is_whole
        async with Follower(there, stream.id) as again:
            await again.until(stream.last)
            assert again.is_whole
            stream.log.end(LogState.FINISHED)
            assert await again.until_end() is LogState.FINISHED
        await check_that_all_works(here, there)
        await check_that_all_works(there, here)


class Producer:
    """A producer in a process of its own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.stream_id = self.receive()

    def send(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{command}\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the producer has died"
        return line.strip()

    def do(self, command: str) -> None:
        self.send(command)
        assert self.receive() == "done"


@contextmanager
def producing(url: str) -> Iterator[Producer]:
    command = [sys.executable, "-m", "tests.e2e.redis.producer_process", url, str(LEASE_SECONDS)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Producer(process)
        finally:
            process.kill()


@pytest.mark.slow
async def test_the_streams_of_a_process_that_is_killed_are_lost_after_its_lease(
    server: RedisServer,
) -> None:
    async with store_at(server) as there:
        with producing(server.url) as producer:
            producer.do("write 5")
            await visible(there, producer.stream_id, 5)
            async with Follower(there, producer.stream_id) as client:
                await client.until(5)
                await asyncio.sleep(LEASE_SECONDS)
                assert client.reader.end is None
                producer.process.kill()
                assert await client.until_end() is LogState.LOST
        assert client.is_whole
        found = await there.find(producer.stream_id)
        assert found is not None
        assert found.state is LogState.LOST
        late = await Reader(there, producer.stream_id, 2).read_all()
        assert (late.numbers, late.end and late.end.state) == ([3, 4, 5], LogState.LOST)


@pytest.mark.slow
async def test_readers_do_not_notice_an_event_loop_that_is_blocked(server: RedisServer) -> None:
    async with store_at(server) as there:
        with producing(server.url) as producer:
            producer.do("write 5")
            await visible(there, producer.stream_id, 5)
            async with Follower(there, producer.stream_id) as client:
                await client.until(5)
                producer.send(f"block {2 * LEASE_SECONDS}")
                assert producer.receive() == "blocks"
                await asyncio.to_thread(producer.receive)
                assert client.reader.end is None
                assert not client.refusals
                producer.do("write 5")
                await client.until(10)
                producer.do("end")
                assert await client.until_end() is LogState.FINISHED
    assert client.is_whole


async def test_the_number_of_connections_depends_on_processes_and_not_on_readers(
    server: RedisServer,
) -> None:
    async with (
        store_at(server, timeout=HANG_SECONDS) as here,
        store_at(server, timeout=HANG_SECONDS) as there,
    ):
        streams = [FakeStream(here) for _ in range(200)]
        await visible(there, streams[-1].id)
        async with AsyncExitStack() as stack:
            readers = [
                await stack.enter_async_context(Reader(store, stream.id))
                for stream in streams
                for store in (there, there, here)
            ]
            most = 0
            for _ in range(20):
                for stream in streams:
                    stream.write()
                await asyncio.sleep(0.05)
                most = max(most, server.connections())
            for reader in readers:
                await reader.until(20)
        assert all(len(reader.numbers) == 20 for reader in readers)
        # Each process has one for writing, for reading, for its inbox, and for its lease.
        assert most <= 2 * 4, server.client.client_list()
