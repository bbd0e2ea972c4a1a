"""Requests to any worker can follow, cancel and name the streams of all workers."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2 as httpx
import pytest

from tests.support.cut_proxy import CuttingProxy
from tests.support.redis_server import RedisServer
from tests.support.viewers import Viewer
from tests.support.waiting import HANG_SECONDS
from tests.support.workers import working

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
ENVIRON = {"SSE_RETRY_MS": "100", "SSE_LINGER_SECONDS": "1"}
TICKS = [b"data: %d\n\n" % number for number in range(1, 101)]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[int]]:
    directory = tmp_path_factory.mktemp("workers")
    with (
        RedisServer(directory) as redis,
        working(APP, 3 * [redis.patient_url], directory, ENVIRON) as workers,
    ):
        yield [worker.server.port for worker in workers]


@asynccontextmanager
async def watched(ports: list[int], path: str) -> AsyncGenerator[tuple[Viewer, list[Viewer]]]:
    """Open a stream at the first worker, and follow it at each."""
    async with AsyncExitStack() as stack:
        live = await stack.enter_async_context(Viewer(ports[0], path))
        await live.until(2)
        cursor = live.events[0].last_event_id
        followers = [
            await stack.enter_async_context(Viewer(port, path, last_event_id=cursor))
            for port in ports
        ]
        for follower in followers:
            await follower.until(2)
        yield live, followers


async def test_readers_at_each_worker_follow_one_stream_to_its_end(ports: list[int]) -> None:
    async with watched(ports, "/ticks?pause=0.01&n=100") as (live, followers):
        for viewer in (live, *followers):
            assert await viewer.until_stopped() == "complete"
            assert viewer.data_of("complete")[0]["reason"] == "finished"
            assert viewer.last == 100
            assert len(viewer.asked_with) == 1
        assert live.is_whole()
        assert all(follower.is_whole(2) for follower in followers)
        ids = {viewer.events[-1].last_event_id for viewer in (live, *followers)}
        assert len(ids) == 1


@pytest.mark.parametrize("by", ["DELETE", "POST"])
async def test_a_stream_is_cancelled_from_another_worker(ports: list[int], by: str) -> None:
    async with (
        watched(ports, "/ticks") as (live, followers),
        httpx.AsyncClient(timeout=HANG_SECONDS) as client,
    ):

        async def cancel(port: int, cursor: str) -> int:
            url = f"http://127.0.0.1:{port}/ticks"
            if by == "DELETE":
                answer = await client.delete(url, headers={"last-event-id": cursor})
            else:
                answer = await client.post(f"{url}?sse_cancel", content=cursor)
            return answer.status_code

        secret, _, _ = live.last_event_id.rpartition("-")
        assert await cancel(ports[1], f"{secret[::-1]}-1") == 204
        assert not live.stopped_by
        assert await cancel(ports[1], live.last_event_id) == 204
        for viewer in (live, *followers):
            assert await viewer.until_stopped() == "complete"
            assert viewer.data_of("complete")[0]["reason"] == "cancelled"
        assert await cancel(ports[2], live.last_event_id) == 204
        again = Viewer(ports[2], "/ticks", last_event_id=live.last_event_id)
        await again.run()
        assert again.stopped_by == "204"


async def test_a_named_stream_is_followed_at_another_worker(ports: list[int]) -> None:
    path = "/ticks?chat=1&pause=0.02"
    async with Viewer(ports[0], path) as older, Viewer(ports[1], f"{path}&n=100") as latest:
        await older.until(2)
        await latest.until(2)
        async with AsyncExitStack() as stack:
            followers = [
                await stack.enter_async_context(Viewer(port, "/chats/1")) for port in ports
            ]
            for viewer in (latest, *followers):
                assert await viewer.until_stopped() == "complete"
                assert viewer.is_whole()
                assert viewer.last == 100
            stream = latest.data_of("start")[0]["stream_id"]
            assert all(viewer.data_of("start")[0]["stream_id"] == stream for viewer in followers)
        assert not older.stopped_by
    late = Viewer(ports[2], "/chats/1")
    await late.run()
    assert late.stopped_by == "204"


async def test_a_plain_client_gets_the_rest_at_another_worker_byte_for_byte(
    ports: list[int],
) -> None:
    """The streams of products: an answer that `fetch` or an SDK reads is cut, and continues."""
    path, whole = "/ticks?chat=plain&n=60&pause=0.02", b"".join(TICKS[:60])
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        received = b""
        async with client.stream("GET", f"http://127.0.0.1:{ports[0]}{path}") as response:
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > len(whole) // 4:
                    break
        for port in (*ports[1:], ports[0]):  # cut again and again, at another worker each time
            after = received.count(b"\n\n")
            received = b"".join(TICKS[:after])
            url = f"http://127.0.0.1:{port}/chats/plain?after={after}"
            async with client.stream("GET", url) as response:
                assert response.status_code == 200
                async for chunk in response.aiter_raw():
                    received += chunk
                    if port != ports[0] and received.count(b"\n\n") > after + 5:
                        break
        assert received == whole
        late = await client.get(f"http://127.0.0.1:{ports[1]}/chats/plain")
        assert late.status_code == 204


async def test_a_plain_stream_is_stopped_by_name_at_another_worker(ports: list[int]) -> None:
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        path = "/ticks?chat=stopped&pause=0.02"
        async with client.stream("GET", f"http://127.0.0.1:{ports[0]}{path}") as response:
            chunks = response.aiter_raw()
            await anext(chunks)
            stop = await client.delete(f"http://127.0.0.1:{ports[1]}/chats/stopped")
            assert stop.status_code == 204
            with pytest.raises(httpx.RemoteProtocolError):  # a plain client gets no end event
                async for _ in chunks:
                    pass
        deadline = time.monotonic() + HANG_SECONDS
        while True:  # the end reaches Redis a little later, and cuts a client that follows
            try:
                live = await client.get(f"http://127.0.0.1:{ports[2]}/chats/stopped")
            except httpx.RemoteProtocolError:
                live = None
            if live is not None:
                break
            assert time.monotonic() < deadline
        assert live.status_code == 204


async def test_a_client_that_is_rotated_visits_all_workers(ports: list[int]) -> None:
    async with (
        CuttingProxy(ports) as balancer,
        Viewer(balancer.port, "/turns?n=100&pause=0.03", haste=0.1) as viewer,
    ):
        assert await viewer.until_stopped() == "complete"
    assert viewer.is_whole()
    assert viewer.last == 100
    assert len(viewer.asked_with) > 4
    assert len({start["stream_id"] for start in viewer.data_of("start")}) == 1
