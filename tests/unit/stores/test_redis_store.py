"""The Redis store: the contract of all stores, and what only Redis has, on a real server."""

import asyncio
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from redis.asyncio import Redis

from sse_middleware.errors import StoreError
from sse_middleware.stores.base import FIND_PAUSES, Batch, LogState, seal_identity
from sse_middleware.stores.circuit_breaker import Backoff
from sse_middleware.stores.redis import RedisStore, inbox
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.log import RedisLog
from sse_middleware.stores.redis.log_writer import LogWriter
from sse_middleware.testing import FakeStream, Reader, StoreContract
from sse_middleware.testing.streams import eventually
from tests.support.redis_server import Proxy, RedisServer
from tests.support.redis_stores import Counting, stores, until_read_by, visible

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


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let readers depend on messages: without one they wait longer than any test does."""
    monkeypatch.setattr("sse_middleware.stores.redis.store._POLL_SECONDS", 600.0)


def test_find_waits_longer_than_a_process_pauses_after_a_failed_read_of_its_inbox() -> None:
    """After a restart of Redis, a log is not there until its process has noticed the restart."""
    assert sum(FIND_PAUSES) > inbox.LONGEST_PAUSE_SECONDS
    backoff = Backoff(longest=inbox.LONGEST_PAUSE_SECONDS)
    assert max(backoff.next() for _ in range(10)) == inbox.LONGEST_PAUSE_SECONDS


# Another process


async def test_a_log_is_found_though_redis_is_about_to_hear_of_it(server: RedisServer) -> None:
    async with Proxy(server) as proxy, stores(proxy) as (here,), stores(server) as (there,):
        await visible(there, FakeStream(here))
        proxy.cut()
        stream = FakeStream(here)
        asyncio.get_running_loop().call_later(0.1, proxy.heal)
        found = await there.find(stream.id)
        assert found is not None
        sealed = seal_identity(stream.info.identity, found.identity_key)
        assert found.info == replace(stream.info, identity=sealed)


async def test_a_reader_in_another_process_gets_each_event_by_a_message(
    server: RedisServer, no_polls: None
) -> None:
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        stream.write(3)
        await visible(there, stream, state=LogState.RUNNING, last=3, first=1)
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

        async def cancel() -> bool:
            try:
                return await there.cancel(stream.id)
            except StoreError:  # the first log may be visible before the inbox is there
                return False

        await eventually(cancel, bool, "the stream should be cancelled")
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
    async with stores(server, 2) as (here, there):
        stream = FakeStream(here)
        await visible(there, stream)
        ask = CommandClient.query

        async def ask_slowly(link: CommandClient, what: str, *commands: Any) -> list[Any]:
            """Check for the log before Redis has it, and return the answer later."""
            if commands[0][0] != "EXISTS" or stream.last:
                return await ask(link, what, *commands)
            stream.write(3)
            stream.log.end(LogState.FINISHED, b"event: complete\n\n")
            await stream.log.flush()
            await asyncio.sleep(0.1)
            return [0, []]

        monkeypatch.setattr(CommandClient, "query", ask_slowly)
        reader = await Reader(there, stream.id).read_all()
        assert reader.end == Batch(LogState.FINISHED, 3, b"event: complete\n\n")


async def test_the_latest_log_of_a_name_counts_in_all_processes(server: RedisServer) -> None:
    async with stores(server, 2) as (here, there):
        first, second = FakeStream(here), FakeStream(there)

        async def named() -> str | None:
            found = await here.find_named("chat")
            return found and found.info.stream_id

        async def is_named_there() -> bool:
            return await there.find_named("chat") is not None

        first.log.set_name("chat")
        await eventually(named, lambda got: got == first.id, "the first one was to be found")
        await eventually(is_named_there, bool, "Redis was to have the name")
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
        with pytest.raises(TypeError, match="of url and client, allowed is one of them"):
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
