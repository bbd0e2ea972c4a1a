"""Three workers, one Redis, and what happens to them: who reads a live stream never notices.

Who comes back meanwhile is asked to come again, gets all, and is told of what is lost. Afterwards
all works again by itself. `-m slow` has the lease that workers have, longer faults, and those of
which `test_redis_faults` knows too.
"""

import asyncio
import re
import time
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
from tests.support.redis_server import Proxy, RedisServer
from tests.support.viewers import Viewer
from tests.support.workers import Worker, working

pytestmark = pytest.mark.anyio

APP = "tests.e2e.redis.worker_app:app"
EVENTSOURCE = {"accept": "text/event-stream", "cache-control": "no-cache"}
NOTICED_SECONDS = 1.0
"""A silence of a stream that waits for Redis; one event comes each 0.05 s."""
AT_ONCE_SECONDS = 1.9
"""What is at once, where a reader waits for Redis for a second."""


@dataclass(frozen=True)
class Pace:
    """How long things take.

    Attributes:
        lease: within which time a worker that has died is known to be, in seconds.
        fault: how long a fault lasts.
        block: how long a loop is blocked.
        environ: what the workers are told.
    """

    lease: float
    fault: float
    block: float
    environ: dict[str, str]


QUICK = Pace(2.0, 2.5, 7.0, {"LEASE_SECONDS": "2"})
DEFAULT = Pace(20.0, 10.0, 10.0, {})


@dataclass(frozen=True)
class Place:
    """Where it happens.

    Attributes:
        redis: the one Redis.
        networks: between each worker and it.
        workers: three.
        pace: how long things take.
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
    environ |= {"SSE_LINGER_SECONDS": "2"} | pace.environ
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer(directory))
        networks = [await stack.enter_async_context(Proxy(redis)) for _ in range(3)]
        urls = [network.url for network in networks]
        workers = working(APP, urls, directory, environ)
        # In a thread, so that the loop goes on to carry what they send.
        running = await asyncio.to_thread(workers.__enter__)
        try:
            yield Place(redis, networks, running, pace)
        finally:
            await asyncio.to_thread(workers.__exit__, None, None, None)


class Scene:
    """A live stream of each worker, and readers at each worker of each stream.

    Attributes:
        live: the clients that have opened the streams.
        readers: by worker and stream.
        began: when all was in place, by the clock of the loop.
    """

    def __init__(self, place: Place) -> None:
        self.live: list[Viewer] = []
        self.readers: list[list[Viewer]] = []
        self._place = place
        self._stack = AsyncExitStack()
        self.began = 0.0

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        for port in self._place.ports:
            self.live.append(await enter(Viewer(port, "/ticks", closes=False, haste=1)))
        for viewer in self.live:
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
        """Wait until each reader has what is live now."""
        lasts = [viewer.last for viewer in self.live]
        for readers in self.readers:
            for reader, last in zip(readers, lasts, strict=True):
                await reader.until(last)

    def check_live(self) -> None:
        """Check that who reads a live stream has not noticed anything."""
        for viewer in self.live:
            assert viewer.longest_silence(self.began) < NOTICED_SECONDS
            assert viewer.is_whole()
            assert len(viewer.asked_with) == 1

    def check_readers(self) -> None:
        """Check that each reader was given all of its stream."""
        for at, readers in enumerate(self.readers):
            for of, reader in enumerate(readers):
                assert reader.is_whole(2), (at, of, reader.numbers, reader.told("reset"))
                assert reader.stopped_by == ""

    def times_sent_away(self, at: int, of: int) -> int:
        return len(self.readers[at][of].asked_with) - 1


async def check_asked_to_come_again(port: int, cursor: str) -> None:
    """Check that who comes back to a worker without its store is asked to come again, at once."""
    began = time.monotonic()
    async with httpx.AsyncClient(timeout=10) as client:
        headers = EVENTSOURCE | {"last-event-id": cursor}
        answer = await client.get(f"http://127.0.0.1:{port}/ticks", headers=headers)
    assert time.monotonic() - began < AT_ONCE_SECONDS
    assert answer.status_code == 200
    events = events_in(answer.content)
    assert {event.type for event in events} <= {"start", "heartbeat"}
    assert events[-1].last_event_id == cursor
    assert re.search(rb"\nretry: (1\d\d|200)\n", answer.content)


async def check_that_all_works(place: Place) -> None:
    """Check that answers go on at any worker, wherever they have begun."""
    ends = [rb"event: sta", rb"data: one\ni", rb"data: thr", rb"data: fi", rb"data: la"]
    ports = place.ports
    cases = [
        Case(path_of("lf", mark), [Cut(end, how) for end in ends], haste=0.1, comes_often=True)
        for how in How
        for mark in ("marked", "unmarked")
    ]
    outcomes = await asyncio.gather(
        *(
            play(ports[n % 3 :] + ports[: n % 3], case, f"{time.time()}-{n}")
            for n, case in enumerate(cases)
        )
    )
    expected = events_in(scripted_app.body_of("lf"))
    found = [problem for one in outcomes if (problem := complaint(one, expected))]
    assert not found, found


async def test_a_worker_that_is_killed(place: Place) -> None:
    patience = max(place.pace.lease, 6.0) + 2.0  # a reader looks every four seconds
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
            assert await viewer.until_stopped(patience) == "error"
            assert viewer.told("error")[0]["error"]["code"] == "producer_lost"
            assert viewer.controls[-1].last_event_id == viewer.events[-1].last_event_id
            assert viewer.is_whole(1 if viewer is live else 2)
        late = Viewer(place.ports[2], "/ticks", last_event_id=cursor)
        await late.run()
        assert late.told("error")[0]["error"]["code"] == "producer_lost"
        assert late.is_whole(2)
        await asyncio.to_thread(place.workers[0].start)
        await check_that_all_works(place)


async def test_a_worker_whose_loop_is_blocked(place: Place) -> None:
    async with Scene(place) as scene, httpx.AsyncClient(timeout=60) as client:
        url = f"http://127.0.0.1:{place.ports[0]}/block"
        await client.post(url, params={"seconds": place.pace.block})
        for viewer in scene.live[1:]:
            assert viewer.longest_silence(scene.began) < NOTICED_SECONDS
        await scene.all_keep_up()
        scene.check_readers()
        assert not any(reader.told("error") for reader in scene.readers[1] + scene.readers[2])
        assert scene.times_sent_away(1, 0) == scene.times_sent_away(2, 0) == 0
        await check_that_all_works(place)


async def test_redis_hangs(place: Place) -> None:
    async with Scene(place) as scene:
        with place.redis.stopped():
            await asyncio.sleep(place.pace.fault)
            await check_asked_to_come_again(place.ports[0], scene.live[0].cursor)
            await check_asked_to_come_again(place.ports[1], scene.live[0].cursor)
        await scene.all_keep_up()
        scene.check_live()
        scene.check_readers()
        assert scene.times_sent_away(1, 0) > 0
        await check_that_all_works(place)


@contextmanager
def late(networks: list[Proxy], seconds: float) -> Iterator[None]:
    """Let the answers of Redis be late until the block ends."""
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
            await check_asked_to_come_again(place.ports[0], scene.live[0].cursor)
            await check_asked_to_come_again(place.ports[1], scene.live[0].cursor)
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
                assert bool(holes) is bool(reader.told("reset")), (holes, reader.controls)
        async with Viewer(place.ports[1], "/ticks", last_event_id=early) as late:
            assert (await late.until_told("reset"))["reason"] == "truncated"
            await late.until(scene.live[0].last)
            assert late.numbers == list(range(late.numbers[0], late.last + 1))
        await check_that_all_works(place)


async def test_one_worker_is_cut_off_from_redis(place: Place) -> None:
    async with Scene(place) as scene:
        with place.networks[0].partition():
            await asyncio.sleep(place.pace.fault)
            await check_asked_to_come_again(place.ports[0], scene.live[0].cursor)
            await check_asked_to_come_again(place.ports[0], scene.live[1].cursor)
            lost = await scene.readers[1][0].until_told("error", place.pace.lease + 8)
            assert lost["error"]["code"] == "producer_lost"
        await scene.all_keep_up()
        scene.check_live()
        scene.check_readers()
        assert not any(viewer.told("error") for viewer in scene.readers[1][1:])
        await check_that_all_works(place)


@pytest.mark.slow
async def test_answers_of_redis_are_lost_though_it_does_what_it_is_told(place: Place) -> None:
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
            await asyncio.sleep(1.5)  # who writes tries again each second
            cursor = unkept.events[0].last_event_id
            async with Viewer(place.ports[2], "/ticks", haste=1, last_event_id=cursor) as late:
                await late.until(unkept.last)
                assert late.is_whole(2)
        await scene.all_keep_up()
        scene.check_live()
        scene.check_readers()
        await check_that_all_works(place)
