"""A gateway and a service, each in processes of its own, both with the middleware and marked."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.e2e.drain.test_rolling import Balancer
from tests.support.cut_proxy import Cut, CuttingProxy, How
from tests.support.raw_http import EVENTSOURCE
from tests.support.redis_server import RedisServer
from tests.support.viewers import Viewer
from tests.support.waiting import HANG_SECONDS, until
from tests.support.workers import Worker, working

pytestmark = pytest.mark.anyio

SERVICE = "tests.e2e.redis.worker_app:app"
GATEWAY = "tests.e2e.matrix.gateway_app:app"
NUMBERS = 40
ANSWER = f"/ticks?n={NUMBERS}&pause=0.05"
LONG = 160
LONG_ANSWER = f"/ticks?n={LONG}&pause=0.05"
PATHS = {"marked": ANSWER, "unmarked": f"/unmarked{ANSWER}"}
SERVICE_SETTINGS = {
    "SSE_DRAIN_SECONDS": "40",
    "SSE_RETRY_MS": "1000",
    "SSE_HEARTBEAT_INTERVAL": "0.5",
    "SSE_STREAM_MAX_SECONDS": "50",
}
GATEWAY_SETTINGS = {
    "SSE_DRAIN_SECONDS": "0.5",
    "SSE_HEARTBEAT_INTERVAL": "0.2",
    "SSE_STREAM_MAX_SECONDS": "1",
}
"""If the gateway added anything, it would be seen."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.patient_url


class Layers:
    """The gateways and the services that run, each behind a load balancer."""

    def __init__(self, services: list[Worker], gateways: list[Worker], inner: Balancer) -> None:
        self.services = services
        self.gateways = gateways
        self.inner = inner


@asynccontextmanager
async def layers(redis_url: str, directory: Path, number: int = 1) -> AsyncIterator[Layers]:
    (directory / "services").mkdir()
    (directory / "gateways").mkdir()
    redis_urls = number * [redis_url]
    with ExitStack() as stack:
        services = stack.enter_context(
            working(SERVICE, redis_urls, directory / "services", SERVICE_SETTINGS)
        )
        async with Balancer([worker.server.port for worker in services]) as inner:
            environ = {**GATEWAY_SETTINGS, "INNER_URL": f"http://127.0.0.1:{inner.port}"}
            gateways = stack.enter_context(
                working(GATEWAY, number * [""], directory / "gateways", environ)
            )
            yield Layers(services, gateways, inner)


def check(viewer: Viewer, count: int = NUMBERS) -> None:
    """Check that a viewer has received the whole answer once, with the controls of one layer."""
    assert viewer.numbers == list(range(1, count + 1))
    assert not viewer.discarded
    assert viewer.data_of("complete")[0]["reason"] == "finished"
    assert len(viewer.data_of("start")) == len(viewer.asked_with)
    assert {data["max_duration"] for data in viewer.data_of("start")} == {50.0}
    ids = [event.last_event_id for event in viewer.events]
    assert len(set(ids)) == count
    assert len({event_id.rpartition("-")[0] for event_id in ids}) == 1


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_cuts_on_both_sides_of_the_gateway_lose_nothing(
    path: str, redis_url: str, tmp_path: Path
) -> None:
    async with layers(redis_url, tmp_path) as found:
        port = found.gateways[0].server.port
        cuts = [
            Cut(rb"data: %d\n" % number, how) for number, how in ((5, How.CLOSED), (9, How.RESET))
        ]
        async with CuttingProxy([port], cuts) as outer:
            viewer = Viewer(outer.port, path)
            await viewer.run()
            assert len(outer.made) == 2
        check(viewer)
        assert len(viewer.asked_with) == 3
        beats = len(viewer.data_of("heartbeat"))
        assert beats <= 8  # those of the service alone: about two seconds, one each half


async def test_a_stop_at_the_gateway_stops_the_app_of_the_service(
    redis_url: str, tmp_path: Path
) -> None:
    async with layers(redis_url, tmp_path) as found:
        port = found.gateways[0].server.port
        async with Viewer(port, "/ticks") as viewer:
            await viewer.until(3)
            async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
                stopped = await client.post(
                    f"http://127.0.0.1:{port}/ticks?sse_cancel", content=viewer.last_event_id
                )
            assert stopped.status_code == 204
            assert await viewer.until_stopped() == "complete"
        assert viewer.data_of("complete")[0]["reason"] == "cancelled"


async def test_other_clients_get_the_bytes_of_the_service(redis_url: str, tmp_path: Path) -> None:
    async with layers(redis_url, tmp_path) as found:
        url = f"http://127.0.0.1:{found.gateways[0].server.port}"
        async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
            answers = [
                await client.get(f"{url}{path}?n=3&pause=0.7", headers=headers)
                for path in ("/ticks", "/unmarked/ticks")
                for headers in ({}, {"accept": "text/event-stream"})
            ]
        for answer in answers:
            body = answer.content.replace(b": heartbeat\n\n", b"")
            assert body == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
            assert 1 <= answer.content.count(b": heartbeat") <= 6


async def end(worker: Worker, balancer: Balancer, others: list[Worker]) -> None:
    """Send new connections to other workers, and let one shut down."""
    balancer.ports[:] = [other.server.port for other in others]
    worker.server.process.terminate()
    await asyncio.to_thread(worker.server.process.wait, HANG_SECONDS)


async def test_each_answer_arrives_whole_once_while_a_gateway_and_a_service_end(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        layers(redis_url, tmp_path, 2) as found,
        Balancer([worker.server.port for worker in found.gateways]) as outer,
    ):
        # Equal requests of one client would be those of a page that is reloaded.
        paths = [f"{LONG_ANSWER}&viewer={number}" for number in range(12)]
        viewers = [Viewer(outer.port, path, haste=0.05) for path in paths]
        readers = [asyncio.ensure_future(viewer.run(most_connections=1000)) for viewer in viewers]
        await until(lambda: all(viewer.last > 2 for viewer in viewers), "not all have an event")
        await end(found.gateways[0], outer, found.gateways[1:])
        await end(found.services[0], found.inner, found.services[1:])
        await asyncio.gather(*readers)
    for viewer in viewers:
        check(viewer, LONG)
    assert sum(len(viewer.asked_with) > 1 for viewer in viewers) >= len(viewers) / 2


async def test_the_headers_are_those_of_the_service(redis_url: str, tmp_path: Path) -> None:
    async with layers(redis_url, tmp_path) as found:
        services = f"http://127.0.0.1:{found.services[0].server.port}"
        gateways = f"http://127.0.0.1:{found.gateways[0].server.port}"
        async with httpx.AsyncClient(timeout=HANG_SECONDS, headers=EVENTSOURCE) as client:
            bare = await client.get(f"{services}/ticks?n=1&pause=0")
            passed = [
                await client.get(f"{gateways}{path}/ticks?n=1&pause=0")
                for path in ("", "/unmarked")
            ]
        for answer in passed:
            own = ("x-stream-id", "x-trace-id", "date")
            assert [pair for pair in answer.headers.multi_items() if pair[0] not in own] == [
                pair for pair in bare.headers.multi_items() if pair[0] not in own
            ]
            assert len(answer.headers.get_list("x-stream-id")) == 1
            assert answer.headers["x-stream-id"] in answer.text
