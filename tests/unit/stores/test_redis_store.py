"""The Redis store: the contract of all stores, and what only Redis has, on a real server."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, ClassVar

import pytest
from redis.asyncio import Redis

from sse_middleware.errors import StoreError
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.stores.base import Batch, LogState
from sse_middleware.stores.redis import RedisStore
from sse_middleware.stores.redis import client as redis_client
from sse_middleware.stores.redis import keys as redis_keys
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.log_writer import LogWriter, RedisLog
from sse_middleware.testing import FakeStream, Reader, StoreContract
from sse_middleware.testing.streams import eventually
from tests.support.redis_server import Proxy, RedisServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    running_server.client.flushall()
    return running_server


class TestContract(StoreContract):
    url: ClassVar[str]

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _server(cls, running_server: RedisServer) -> None:
        cls.url = running_server.patient_url

    def make_store(self, *, max_events: int, max_bytes: int, ttl: float) -> RedisStore:
        return RedisStore(self.url, max_events=max_events, max_bytes=max_bytes, ttl=ttl)


@asynccontextmanager
async def stores(
    server: RedisServer | Proxy, count: int = 1, **options: Any
) -> AsyncGenerator[list[RedisStore]]:
    """Make stores as different processes have them; only a test of a timeout has a short one."""
    url = server.patient_url if isinstance(server, RedisServer) else server.url
    async with AsyncExitStack() as stack:
        made = [RedisStore(url, **options) for _ in range(count)]
        for store in made:
            stack.push_async_callback(store.close)
        yield made


async def visible(store: RedisStore, stream: FakeStream, **fields: object) -> None:
    """Wait until a store in another process finds a stream so."""

    async def ask() -> dict[str, object]:
        found = await store.find(stream.id)
        return {} if found is None else found._asdict()

    await eventually(
        ask, lambda got: bool(got) and fields.items() <= got.items(), f"it was to be {fields}"
    )


async def hidden(server: RedisServer, within: float = 20.0) -> None:
    """Wait until there is no key."""
    deadline = time.monotonic() + within
    while keys := server.all_keys():
        assert time.monotonic() < deadline, keys
        await asyncio.sleep(0.05)


async def whole(store: RedisStore, stream: FakeStream) -> Reader:
    """Read all of a stream as soon as Redis can be reached."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return await Reader(store, stream.id).read_all()
        except StoreError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers depend on messages: without one they wait longer than any test does."""
    monkeypatch.setattr("sse_middleware.stores.redis.store._POLL_SECONDS", 600.0)


class Counting:
    """An observer that counts what the store does."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.flushes = 0

    async def until_failed(self, operation: str) -> None:
        async def failures() -> list[str]:
            return self.failures

        await eventually(failures, lambda found: operation in found, f"{operation} was to fail")

    def store_failed(self, operation: str) -> None:
        self.failures.append(operation)

    def store_flushed(self, seconds: float) -> None:
        assert seconds >= 0
        self.flushes += 1

    def opened(self, record: StreamRecord) -> None: ...
    def progressed(self, record: StreamRecord) -> None: ...
    def stalled(self, record: StreamRecord, seconds: float) -> None: ...
    def ended(self, record: StreamRecord) -> None: ...
    def resumed(self, route: str, result: str, replayed: int) -> None: ...
    def lingering(self, more: int) -> None: ...
    def rejected(self, route: str, reason: str) -> None: ...


async def until_read_by(log: RedisLog, count: int) -> None:
    async def processes() -> int:
        return len(log.reader_processes)

    await eventually(processes, lambda got: got == count, f"{count} processes were to read it")


# Another process


async def test_a_log_is_found_though_redis_is_about_to_hear_of_it(server: RedisServer) -> None:
    async with Proxy(server) as proxy, stores(proxy) as (here,), stores(server) as (there,):
        await visible(there, FakeStream(here))
        proxy.cut()
        stream = FakeStream(here)
        asyncio.get_running_loop().call_later(0.1, proxy.heal)
        found = await there.find(stream.id)
        assert found is not None
        assert found.info == stream.info


async def test_a_reader_in_another_process_gets_each_event_by_a_message(
    server: RedisServer, no_polls: None
) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream, info=stream.info, state=LogState.RUNNING, last=3, first=1)
        async with Reader(there, stream.id) as reader:
            await reader.until(3)
            await stream.producer.until_notified("followed")
            for _ in range(20):
                stream.write()
                await reader.until(stream.last)
            stream.log.end(LogState.FINISHED, b"event: complete\n\n")
            assert await reader.until_end() is LogState.FINISHED
        assert (len(reader.numbers), reader.holes) == (23, [])


async def test_a_producer_is_notified_of_readers_in_other_processes(server: RedisServer) -> None:
    async with stores(server, 3) as (here, there, elsewhere):
        stream = FakeStream(here)
        await visible(there, stream)
        async with Reader(there, stream.id), Reader(there, stream.id):
            await stream.producer.until_notified("followed")
            async with Reader(elsewhere, stream.id), Reader(here, stream.id):
                assert isinstance(stream.log, RedisLog)
                await until_read_by(stream.log, 2)
        await stream.producer.until_notified("followed", "left")


async def test_a_stream_is_cancelled_from_another_process(server: RedisServer) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        await visible(there, stream)
        assert await there.cancel(stream.id)
        await stream.producer.until_cancelled()
        stream.log.end(LogState.CANCELLED)
        await visible(there, stream, state=LogState.CANCELLED)
        assert await there.cancel(stream.id)
        assert stream.producer.cancels == 1


async def test_a_reader_in_another_process_is_notified_that_a_log_is_gone(
    server: RedisServer,
) -> None:
    async with stores(server, 2) as (here, there):
        gone, disowned = FakeStream(here), FakeStream(here)
        for stream in (gone, disowned):
            stream.write(2)
            await visible(there, stream, last=2)
        async with Reader(there, gone.id) as one, Reader(there, disowned.id) as other:
            await one.until(2)
            await other.until(2)
            gone.log.end(LogState.GONE)
            disowned.log.use_app_ids()
            assert await other.until_end() is LogState.APP_OWNS_IDS
            assert await one.until_end() is LogState.GONE


async def test_a_reader_that_arrives_as_a_remote_log_is_dropped_is_notified_at_once(
    server: RedisServer, no_polls: None
) -> None:
    async with stores(server, 2) as (here, there):
        for pause in (0.0, 0.001, 0.002, 0.004, 0.008):
            stream = FakeStream(here)
            await visible(there, stream)
            stream.log.end(LogState.GONE)
            await asyncio.sleep(pause)
            reader = await Reader(there, stream.id).read_all()
            assert reader.end == Batch(LogState.GONE, 0, b"")


async def test_a_waiting_reader_of_a_dropped_remote_log_is_notified_at_once(
    server: RedisServer, no_polls: None
) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        await visible(there, stream)
        async with Reader(there, stream.id) as reader, Reader(there, stream.id) as other:
            await stream.producer.until_notified("followed")
            stream.log.end(LogState.GONE)
            assert [await one.until_end() for one in (reader, other)] == 2 * [LogState.GONE]


async def test_an_answer_that_comes_late_is_no_proof_that_a_log_has_gone(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stores(server) as (store,):
        stream = FakeStream(store)
        ask = CommandClient.query

        async def ask_slowly(link: CommandClient, what: str, *commands: Any) -> list[Any]:
            """Look whether there is a log before Redis has heard of it, and say so much later."""
            if commands[0][0] != "EXISTS" or stream.last:
                return await ask(link, what, *commands)
            stream.write(3)
            stream.log.end(LogState.FINISHED, b"event: complete\n\n")
            await stream.log.flush()
            await asyncio.sleep(0.1)
            return [0, []]

        monkeypatch.setattr(CommandClient, "query", ask_slowly)
        reader = await Reader(store, stream.id).read_all()
        assert reader.end == Batch(LogState.FINISHED, 3, b"event: complete\n\n")


async def test_the_latest_log_of_a_name_counts_in_all_processes(server: RedisServer) -> None:
    async with stores(server, 2) as (here, there):
        first, second = FakeStream(here), FakeStream(there)

        async def named() -> str | None:
            found = await here.find_named("chat")
            return found and found.info.stream_id

        first.log.set_name("chat")
        await eventually(named, lambda got: got == first.id, "the first one was to be found")
        second.log.set_name("chat")
        await eventually(named, lambda got: got == second.id, "the second one was to be found")
        first.log.set_name("another chat")
        first.log.end(LogState.FINISHED)
        await visible(there, first, state=LogState.FINISHED)
        assert await named() == second.id
        assert not any("chat" in key for key in server.all_keys())


async def test_a_waiting_reader_is_notified_of_a_gap_without_another_event(
    server: RedisServer,
) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.write(2)
        await visible(there, stream, last=2)
        async with Reader(there, stream.id) as far, Reader(here, stream.id) as near:
            await far.until(2)
            await near.until(2)
            stream.log.skip(3)
            await far.until(3)
            await near.until(3)
            stream.last = 3
            stream.write(1)
            await far.until(4)
            await near.until(4)
        for reader in (far, near):
            assert (reader.numbers, reader.holes) == ([1, 2, 4], [(3, 3)])


# Keys


async def test_each_key_has_the_prefix_the_schema_and_an_end(server: RedisServer) -> None:
    async with stores(server, prefix="app:") as (store,):
        stream = FakeStream(store)
        stream.log.set_name("chat")
        stream.write(2)
        async with Reader(store, stream.id) as reader:
            await reader.until(2)

        async def all_keys() -> list[str]:  # the lease has a thread of its own
            return server.all_keys()

        await eventually(all_keys, lambda keys: len(keys) == 5, "there were to be five keys")
        keys = server.all_keys()
        assert all(key.startswith(f"app:{redis_keys.SCHEMA}:") for key in keys)
        assert all(0 < server.client.pttl(key) <= 60_000 for key in keys), keys
        of_the_stream = [key for key in keys if stream.id in key]
        assert len({key[key.index("{") : key.index("}")] for key in of_the_stream}) == 1


async def test_two_prefixes_and_two_schemas_do_not_see_each_other(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stores(server) as (ours,), stores(server, prefix="b:") as (other,):
        monkeypatch.setattr(redis_keys, "SCHEMA", redis_keys.SCHEMA + 1)
        async with stores(server) as (newer,):
            streams = [FakeStream(store, stream_id="same") for store in (ours, other, newer)]
            for number, stream in enumerate(streams, 1):
                stream.log.set_name("chat")
                stream.write(number)
                stream.log.end(LogState.FINISHED)
            for number, store in enumerate((ours, other, newer), 1):
                reader = await Reader(store, "same").read_all()
                assert (len(reader.numbers), reader.holes) == (number, [])
                found = await store.find_named("chat")
                assert found is not None
                assert found.last == number


async def test_two_versions_of_the_schema_do_not_disturb_each_other_in_a_rolling_upgrade(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stores(server, 2) as (old, older):
        monkeypatch.setattr(redis_keys, "SCHEMA", redis_keys.SCHEMA + 1)
        async with stores(server, 2) as (new, newer):
            for here, there, *others in ((old, older, new), (new, newer, old)):
                stream = FakeStream(here)
                stream.write(2)
                await visible(there, stream, last=2)
                async with Reader(there, stream.id) as reader:
                    await stream.producer.until_notified("followed")
                    for other in others:  # a worker of the other version knows nothing of it
                        assert await other.find(stream.id) is None
                        assert not await other.cancel(stream.id)
                        stranger = await Reader(other, stream.id).read_all()
                        assert stranger.end is not None
                        assert stranger.end.state is LogState.GONE
                    stream.write(3)
                    await reader.until(5)
                    stream.log.end(LogState.FINISHED)
                    assert await reader.until_end() is LogState.FINISHED
                assert stream.producer.cancels == 0
    await asyncio.sleep(0)
    leases = [key for key in server.all_keys() if "lease" in key or "inbox" in key]
    assert leases == []


async def test_no_key_remains_after_its_expiry(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stores.redis.log_writer._RUNNING_SECONDS", 1.0)
    async with stores(server, ttl=0.3) as (store,):
        for number in range(500):
            stream = FakeStream(store)
            stream.log.set_name(f"chat:{number}")
            stream.write(3)
            how = number % 4
            if how == 0:
                stream.log.end(LogState.GONE)
            elif how == 1:
                stream.log.use_app_ids()
            else:
                stream.log.end(LogState.FINISHED)
    await hidden(server)


async def test_the_log_of_a_dead_process_expires(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stores.redis.log_writer._RUNNING_SECONDS", 0.5)
    async with stores(server, ttl=0.3) as (store,):
        stream = FakeStream(store)
        stream.write(3)

        async def all_keys() -> int:
            return len(server.all_keys())

        await eventually(all_keys, lambda count: count == 4, "there were to be four keys")
    await hidden(server)


async def test_a_running_log_is_renewed(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stores.redis.inbox.PRESENCE_SECONDS", 0.3)
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.log.set_name("chat")
        stream.write(3)
        await stream.log.flush()
        keys = [key for key in server.all_keys() if "lease" not in key and "inbox" not in key]
        assert len(keys) == 3
        for key in keys:
            server.client.pexpire(key, 30_000)
        assert isinstance(stream.log, RedisLog)
        stream.log.renew_at = 0.0

        async def shortest() -> int:
            return min(server.client.pttl(key) for key in keys)

        await eventually(shortest, lambda ttl: ttl > 30_000, "all keys were to be renewed")
        assert await there.find_named("chat") is not None
        async with Reader(there, stream.id) as reader:
            await reader.until(3)
        assert reader.holes == []


# What is written twice, late, or not at all


async def test_a_write_happens_once_if_its_answer_is_lost(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "WRITE_TIMEOUT_SECONDS", 0.3)
    observer = Counting()
    async with Proxy(server) as proxy, stores(server) as (there,):
        async with stores(proxy, timeout=0.3, observers=[observer]) as (here,):
            stream = FakeStream(here)
            stream.write(3)
            await visible(there, stream, last=3)
            proxy.swallows = True
            stream.write(3)
            await visible(there, stream, last=6)  # it has arrived
            stream.write(3)
            await observer.until_failed("flush")
            proxy.swallows = False
            stream.write(2)
            stream.log.end(LogState.FINISHED)
            reader = await Reader(there, stream.id).read_all()
        assert (reader.numbers, reader.holes) == (list(range(1, 12)), [])
        assert len(reader.frames) == len(b"".join(b"id: %d\ndata: x\n\n" % n for n in range(1, 12)))


async def test_a_first_write_happens_once_if_its_answer_is_lost(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "WRITE_TIMEOUT_SECONDS", 0.3)
    observer = Counting()
    options: dict[str, Any] = {"timeout": 0.3, "observers": [observer]}
    async with (
        Proxy(server) as proxy,
        stores(server) as (there,),
        stores(proxy, **options) as (here,),
    ):
        proxy.swallows = True
        stream = FakeStream(here)
        stream.write(3)
        await observer.until_failed("flush")
        proxy.swallows = False
        stream.write(2)
        stream.log.end(LogState.FINISHED)
        await visible(there, stream, state=LogState.FINISHED)
        reader = await Reader(there, stream.id).read_all()
    assert (reader.numbers, reader.holes) == ([1, 2, 3, 4, 5], [])


async def test_an_id_that_redis_has_already_is_taken_for_written(server: RedisServer) -> None:
    async with stores(server) as (store,):
        stream = FakeStream(store)
        stream.write(2)
        await visible(store, stream, last=2)
        async with Reader(store, stream.id) as reader:
            await reader.until(2)
            (key,) = [key for key in server.all_keys() if key.endswith(":log")]
            server.client.xadd(key, {"h": ""}, id="4-0")
            stream.write(4)
            await reader.until(6)
        assert reader.numbers == [1, 2, 5, 6]
        assert reader.holes == [(3, 4)]


async def test_a_log_that_redis_has_lost_begins_again_and_readers_are_notified(
    server: RedisServer,
) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.log.set_name("chat")
        stream.write(3)
        await visible(there, stream, last=3)
        server.client.flushall()
        stream.write(2)
        await visible(there, stream, last=5, first=4)
        late, in_time = Reader(there, stream.id), Reader(there, stream.id, 3)
        stream.log.end(LogState.FINISHED)
        for reader in (late, in_time):
            await reader.read_all()
        assert (late.numbers, late.holes) == ([4, 5], [(1, 3)])
        assert (in_time.numbers, in_time.holes) == ([4, 5], [])
        assert await there.find_named("chat") is not None
        assert all(server.client.pttl(key) > 0 for key in server.all_keys())


async def test_a_late_write_does_not_make_a_key_that_lives_for_ever(server: RedisServer) -> None:
    async with stores(server) as (store,):
        streams = [FakeStream(store) for _ in range(20)]
        for _ in range(20):
            for stream in streams:
                stream.write()
            await asyncio.sleep(0.01)
            server.client.flushall()
            await asyncio.sleep(0.01)
            assert all(server.client.pttl(key) > 0 for key in server.all_keys())


async def test_pending_events_are_bounded_and_dropped_events_are_reported_and_counted(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client, "WRITE_TIMEOUT_SECONDS", 0.2)
    observer = Counting()
    options: dict[str, Any] = {"timeout": 0.2, "max_bytes": 10_000, "observers": [observer]}
    async with stores(server, **options) as (store,):
        stream = FakeStream(store)
        stream.write(10, size=100)
        await stream.log.flush()
        with server.stopped():
            for _ in range(10):
                stream.write(100, size=100)
                await asyncio.sleep(0.01)
            await observer.until_failed("flush")
            stream.write(200, size=100)
            await observer.until_failed("drop")
        stream.log.end(LogState.FINISHED)
        await stream.log.flush()
        reader = await whole(store, stream)
    assert reader.holes
    assert len(reader.numbers) <= 100
    assert reader.last == stream.last


# Out of reach


async def test_a_store_out_of_reach_fails_at_once_and_writers_continue(
    server: RedisServer,
) -> None:
    observer = Counting()
    async with Proxy(server) as proxy:
        url = proxy.url
    store = RedisStore(url, observers=[observer])
    stream = FakeStream(store)
    stream.write(3)
    async with asyncio.timeout(10):
        for query in (store.find("a"), store.find_named("a"), store.cancel("a")):
            with pytest.raises(StoreError):
                await query
        with pytest.raises(StoreError):
            await anext(store.follow("a", 0))
    found = await store.find(stream.id)
    assert found is not None
    assert found.last == 3
    await store.close()
    assert observer.failures


async def test_data_of_another_version_is_refused(
    server: RedisServer,
) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.write(2)
        await visible(there, stream, last=2)
        info, log = sorted(key for key in server.all_keys() if stream.id in key)
        server.client.xadd(log, {"f": "3", "l": "?", "d": "?"}, id="9-0")
        with pytest.raises(StoreError, match="unknown format"):
            await Reader(there, stream.id, 2).read_all()
        server.client.set(info, "{}")
        with pytest.raises(StoreError, match="another version"):
            await there.find(stream.id)


# Clients


async def test_a_client_of_the_users_own_is_used_and_left_open(server: RedisServer) -> None:
    client = Redis.from_url(server.url)
    store = RedisStore(client=client, timeout=30)
    stream = FakeStream(store)
    stream.write(3)
    stream.log.end(LogState.FINISHED)
    assert (await Reader(store, stream.id).read_all()).numbers == [1, 2, 3]
    await store.close()
    assert await client.ping()
    await client.aclose()


async def test_a_store_takes_a_url_or_a_client() -> None:
    for options in ({}, {"url": "redis://127.0.0.1", "client": Redis()}):
        with pytest.raises(TypeError, match="a url or a client"):
            RedisStore(**options)  # type: ignore[arg-type]


async def test_a_closed_store_leaves_no_connection_and_no_lease(server: RedisServer) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        await visible(there, stream)
        async with Reader(there, stream.id):
            await stream.producer.until_notified("followed")

            async def leases() -> int:
                return sum("lease" in key for key in server.all_keys())

            await eventually(leases, lambda count: count == 2, "each process was to have a lease")
    assert not any("lease" in key or "inbox" in key for key in server.all_keys())
    deadline = time.monotonic() + 20
    while server.connections():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_a_store_serves_one_loop_after_the_other(server: RedisServer) -> None:
    store = RedisStore(server.patient_url)

    async def use() -> None:
        stream = FakeStream(store)
        stream.write(3)
        stream.log.end(LogState.FINISHED)
        assert (await Reader(store, stream.id).read_all()).numbers == [1, 2, 3]

    async def use_and_close() -> None:
        await use()
        await store.close()

    asyncio.run(use_and_close())
    asyncio.run(use_and_close())


async def test_a_thousand_streams_that_write_at_once_wait_for_one_flush(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    until_due, waits = LogWriter._until_due, list[LogWriter]()

    async def note(writer: LogWriter) -> None:
        waits.append(writer)
        await until_due(writer)

    monkeypatch.setattr(LogWriter, "_until_due", note)
    async with stores(server, 2) as (here, there):
        streams = [FakeStream(here) for _ in range(1000)]
        for stream in streams:
            await stream.log.flush()
        before = len(waits)
        for stream in streams:
            stream.write()
        for stream in streams[::100]:
            await visible(there, stream, last=1)
        assert len(waits) <= before + 1  # one flush and its work, and not eight


async def test_a_cancel_fails_if_the_process_has_no_inbox(
    server: RedisServer,
) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        await visible(there, stream)
        deadline = time.monotonic() + 20
        while not (inboxes := [key for key in server.all_keys() if "inbox" in key]):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        server.client.delete(*inboxes)
        with pytest.raises(StoreError, match="no inbox"):
            await there.cancel(stream.id)
        lease = next(key for key in server.all_keys() if "lease" in key)
        server.client.delete(lease)
        assert await there.cancel(stream.id)  # of a process that has died there is nothing to end


async def test_an_end_of_another_version_is_refused(server: RedisServer) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.write(2)
        await visible(there, stream, last=2)
        log = next(key for key in server.all_keys() if stream.id in key and key.endswith("log"))
        server.client.xadd(log, {"s": "frozen", "e": ""}, id="2-1")
        with pytest.raises(StoreError, match="unknown format"):
            await there.find(stream.id)
        for after in (0, 5):
            with pytest.raises(StoreError, match="unknown format"):
                await Reader(there, stream.id, after).read_all()


async def test_a_reader_of_a_closed_store_gets_an_error_and_opens_no_connection(
    server: RedisServer,
) -> None:
    async with stores(server) as (writes,):
        stream = FakeStream(writes)
        stream.write(1)
        store = RedisStore(server.patient_url)
        await visible(store, stream, last=1)
        async with aclosing(store.follow(stream.id, 0)) as batches:
            await anext(batches)
            await store.close()
            before = server.connections()
            with pytest.raises(StoreError):
                await anext(batches)
            assert server.connections() == before


def test_a_store_made_before_a_fork_serves_each_child(server: RedisServer) -> None:
    program = f"""
import asyncio, os
from sse_middleware.stores.base import LogState
from sse_middleware.stores.redis import RedisStore
from sse_middleware.testing import FakeStream, Reader

store = RedisStore({server.patient_url!r})

async def use():
    stream = FakeStream(store)
    stream.write(3)
    stream.log.end(LogState.FINISHED)
    assert (await Reader(store, stream.id).read_all()).numbers == [1, 2, 3]
    await store.close()

asyncio.run(use())
children = []
for _ in range(2):
    if not (child := os.fork()):
        asyncio.run(use())
        os._exit(0)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
