"""Faults of three workers and one Redis: the clients of live streams do not notice them.

A client that reconnects during a fault is asked to retry; it receives all events, or a `reset` if
some are lost. After the fault everything works again. `-m slow` runs with the default lease and
longer faults, and includes the faults of `test_faults`.
"""

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

import httpx2 as httpx
import pytest

from tests.support import scripted_app
from tests.support.cut_cases import ENVIRON, Case, complaint, path_of, play
from tests.support.cut_proxy import Cut, CuttingProxy, How
from tests.support.event_source import events_in
from tests.support.raw_http import EVENTSOURCE
from tests.support.redis_server import Proxy, RedisServer
from tests.support.viewers import Viewer
from tests.support.waiting import HANG_SECONDS
from tests.support.workers import Worker, working

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
NOTICED_SECONDS = 1.0
"""The additional silence of a stream that waits for Redis; an event is sent each 0.05 s."""


@dataclass(frozen=True)
class Pace:
    """The durations of one run, in seconds.

    Attributes:
        fault: of a fault.
        block: of a blocked event loop; longer than the lease of a worker.
        environ: the settings of the workers.
    """

    fault: float
    block: float
    environ: dict[str, str]


QUICK = Pace(2.5, 4.5, {"LEASE_SECONDS": "3"})
DEFAULT = Pace(10.0, 25.0, {})


@dataclass(frozen=True)
class Place:
    """Three workers and their Redis.

    Attributes:
        redis: of all workers.
        networks: the connections of each worker to Redis.
        workers: the three.
        pace: the durations of the run.
    """

    redis: RedisServer
    networks: list[Proxy]
    workers: list[Worker]
    pace: Pace

    @property
    def ports(self) -> list[int]:
        return [worker.server.port for worker in self.workers]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(QUICK, id="quick"),
        pytest.param(DEFAULT, id="default", marks=pytest.mark.slow),
    ],
)
async def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Place]:
    directory, pace = tmp_path_factory.mktemp("workers"), request.param
    environ = ENVIRON | {"SSE_RETRY_MS": "200", "SSE_STREAM_MAX_SECONDS": "600"}
    environ |= {"SSE_LINGER_SECONDS": "2", "SSE_DRAIN_SECONDS": "0.2"} | pace.environ
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer(directory))
        networks = [await stack.enter_async_context(Proxy(redis)) for _ in range(3)]
        urls = [f"{network.url}?socket_timeout=2" for network in networks]
        workers = working(APP, urls, directory, environ)
        # In a thread, since the event loop forwards their connections to Redis.
        running = await asyncio.to_thread(workers.__enter__)
        try:
            yield Place(redis, networks, running, pace)
        finally:
            await asyncio.to_thread(workers.__exit__, None, None, None)


class Scene:
    """A live stream of each worker, and a reader of each stream at each worker.

    Attributes:
        live: the clients that have opened the streams.
        controls: clients of the same workers, with streams without the middleware.
        readers: by worker and stream.
        began: the time at which all have events, by the clock of the event loop.
    """

    def __init__(self, place: Place) -> None:
        self.live: list[Viewer] = []
        self.controls: list[Viewer] = []
        self.readers: list[list[Viewer]] = []
        self._place = place
        self._stack = AsyncExitStack()
        self.began = 0.0

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        for port in self._place.ports:
            self.live.append(await enter(Viewer(port, "/ticks", closes=False, haste=1)))
            self.controls.append(await enter(Viewer(port, "/control", closes=False, haste=1)))
        for viewer in (*self.live, *self.controls):
            await viewer.until(3)
        for port in self._place.ports:
            cursors = [viewer.events[0].last_event_id for viewer in self.live]
            readers = [
                Viewer(port, "/ticks", closes=False, haste=1, last_event_id=cursor)
                for cursor in cursors
            ]
            self.readers.append([await enter(reader) for reader in readers])
        await self.all_keep_up()
        self.began = asyncio.get_running_loop().time()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def all_keep_up(self) -> None:
        """Wait until each reader has the last events of the live streams."""
        lasts = [viewer.last for viewer in self.live]
        for readers in self.readers:
            for reader, last in zip(readers, lasts, strict=True):
                await reader.until(last)

    def check_live(self) -> None:
        """Check that the clients of live streams have not noticed a fault."""
        self.check_silence()
        for viewer in self.live:
            assert viewer.is_whole()
            assert len(viewer.asked_with) == 1

    def check_silence(self) -> None:
        """Check that no live stream has been silent for longer than its worker's control."""
        for viewer, control in zip(self.live, self.controls, strict=True):
            additional = viewer.longest_silence(self.began) - control.longest_silence(self.began)
            assert additional < NOTICED_SECONDS

    def check_readers(self) -> None:
        """Check that each reader has received its whole stream."""
        for at, readers in enumerate(self.readers):
            for of, reader in enumerate(readers):
                assert reader.is_whole(2), (at, of, reader.numbers, reader.data_of("reset"))
                assert reader.stopped_by == ""

    def retries(self, at: int, of: int) -> int:
        """Return how often a reader has reconnected."""
        return len(self.readers[at][of].asked_with) - 1


async def check_retry_later(port: int, cursor: str) -> None:
    """Check that a client that reconnects to a worker without its store is asked to retry."""
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        headers = EVENTSOURCE | {"last-event-id": cursor}
        answer = await client.get(f"http://127.0.0.1:{port}/ticks", headers=headers)
    assert answer.status_code == 200
    events = events_in(answer.content)
    assert {event.type for event in events} <= {"start", "heartbeat"}
    assert events[-1].last_event_id == cursor
    assert re.search(rb"\nretry: (1\d\d|200)\n", answer.content)


async def check_served(port: int, live: Viewer) -> None:
    """Check that a client that returns to the worker of its stream receives the next events."""
    held, cursor = live.last, live.last_event_id
    async with Viewer(port, "/ticks", haste=1, last_event_id=cursor) as viewer:
        await viewer.until(held + 3)
        assert viewer.is_whole(held + 1)
        assert not viewer.data_of("reset")


_numbers = itertools.count()


async def check_that_all_works(place: Place) -> None:
    """Check that answers continue at any worker."""
    ends = [rb"event: sta", rb"data: one\ni", rb"data: thr", rb"data: fi", rb"data: la"]
    ports = place.ports
    cases = [
        Case(path_of("lf", mark), [Cut(end, how) for end in ends], haste=0.1, comes_often=True)
        for how in How
        for mark in ("marked", "by_path")
    ]
    outcomes = await asyncio.gather(
        *(
            play(ports[n % 3 :] + ports[: n % 3], case, f"after-fault-{next(_numbers)}")
            for n, case in enumerate(cases)
        )
    )
    expected = events_in(scripted_app.body_of("lf"))
    found = [problem for one in outcomes if (problem := complaint(one, expected))]
    assert not found, found


async def test_a_worker_that_is_killed(place: Place) -> None:
    async with AsyncExitStack() as stack:
        balancer = await stack.enter_async_context(CuttingProxy(place.ports))
        live = Viewer(balancer.port, "/ticks", haste=1)
        await stack.enter_async_context(live)
        await live.until(3)
        cursor = live.events[0].last_event_id
        readers = [
            await stack.enter_async_context(Viewer(port, "/ticks", haste=1, last_event_id=cursor))
            for port in place.ports[1:]
        ]
        for reader in readers:
            await reader.until(5)
        await asyncio.to_thread(place.workers[0].kill)
        for viewer in (live, *readers):
            assert await viewer.until_stopped() == "error"
            assert viewer.data_of("error")[0]["error"]["code"] == "producer_lost"
            assert viewer.controls[-1].last_event_id == viewer.events[-1].last_event_id
            assert viewer.is_whole(1 if viewer is live else 2)
        late = Viewer(place.ports[2], "/ticks", last_event_id=cursor)
        await late.run()
        assert late.data_of("error")[0]["error"]["code"] == "producer_lost"
        assert late.is_whole(2)
        await asyncio.to_thread(place.workers[0].start)
        await check_that_all_works(place)


async def test_a_worker_whose_loop_is_blocked(place: Place) -> None:
    async with Scene(place) as scene, httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        url = f"http://127.0.0.1:{place.ports[0]}/block"
        await client.post(url, params={"seconds": place.pace.block})
        scene.check_silence()
        await scene.all_keep_up()
        scene.check_readers()
        assert not any(reader.data_of("error") for reader in scene.readers[1] + scene.readers[2])
        assert scene.retries(1, 0) == scene.retries(2, 0) == 0
        await check_that_all_works(place)


async def test_redis_hangs(place: Place) -> None:
    async with Scene(place) as scene:
        with place.redis.stopped():
            await asyncio.sleep(place.pace.fault)
            await check_served(place.ports[0], scene.live[0])
            await check_retry_later(place.ports[1], scene.live[0].last_event_id)
        await scene.all_keep_up()
        scene.check_live()
        scene.check_readers()
        assert scene.retries(1, 0) > 0
        await check_that_all_works(place)


@contextmanager
def late(networks: list[Proxy], seconds: float) -> Iterator[None]:
    """Delay the responses of Redis until the block ends."""
    for network in networks:
        network.delay = seconds
    try:
        yield
    finally:
        for network in networks:
            network.delay = 0.0


async def test_redis_answers_after_two_seconds(place: Place) -> None:
    async with Scene(place) as scene:
        with late(place.networks, 2.0):
            await asyncio.sleep(place.pace.fault)
            await check_served(place.ports[0], scene.live[0])
            await check_retry_later(place.ports[1], scene.live[0].last_event_id)
        await scene.all_keep_up()
        scene.check_live()
        scene.check_readers()
        await check_that_all_works(place)


async def test_redis_is_restarted_with_nothing_in_it(place: Place) -> None:
    async with Scene(place) as scene:
        early = scene.live[0].events[0].last_event_id
        await asyncio.to_thread(place.redis.restart)
        await asyncio.sleep(0.5)
        await scene.all_keep_up()
        scene.check_live()
        for readers in scene.readers:
            for reader in readers:
                assert reader.numbers == sorted(set(reader.numbers))
                holes = reader.last - 1 - len(reader.numbers)
                assert bool(holes) is bool(reader.data_of("reset")), (holes, reader.controls)
        async with Viewer(place.ports[1], "/ticks", last_event_id=early) as late:
            assert (await late.until_control("reset"))["reason"] == "truncated"
            await late.until(scene.live[0].last)
            assert late.numbers == list(range(late.numbers[0], late.last + 1))
        await check_that_all_works(place)


async def test_one_worker_is_cut_off_from_redis(place: Place) -> None:
    async with Scene(place) as scene:
        with place.networks[0].partition():
            await asyncio.sleep(place.pace.fault)
            await check_served(place.ports[0], scene.live[0])
            await check_retry_later(place.ports[0], scene.live[1].last_event_id)
            lost = await scene.readers[1][0].until_control("error")
            assert lost["error"]["code"] == "producer_lost"
        await scene.all_keep_up()
        scene.check_live()
        scene.check_readers()
        assert not any(viewer.data_of("error") for viewer in scene.readers[1][1:])
        await check_that_all_works(place)


@pytest.mark.slow
async def test_responses_of_redis_are_lost_though_it_executes_commands(place: Place) -> None:
    async with Scene(place) as scene:
        place.networks[0].swallows = True
        await asyncio.sleep(place.pace.fault)
        place.networks[0].swallows = False
        await scene.all_keep_up()
        scene.check_live()
        scene.check_readers()
        await check_that_all_works(place)


@pytest.mark.slow
async def test_redis_is_full(place: Place) -> None:
    async with Scene(place) as scene:
        place.redis.client.config_set("maxmemory", 1)
        async with Viewer(place.ports[1], "/ticks") as unkept:
            await unkept.until(3)
            await asyncio.sleep(place.pace.fault)
            place.redis.client.config_set("maxmemory", 0)
            assert unkept.is_whole()
            await scene.all_keep_up()  # the writers have retried
            cursor = unkept.events[0].last_event_id
            async with Viewer(place.ports[2], "/ticks", haste=1, last_event_id=cursor) as late:
                await late.until(unkept.last)
                assert late.is_whole(2)
        await scene.all_keep_up()
        scene.check_live()
        scene.check_readers()
        await check_that_all_works(place)
