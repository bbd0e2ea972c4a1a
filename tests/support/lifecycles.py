"""Random lifecycles: seeded runs of apps, servers, clients, settings and drains, with checks.

    python -m tests.support.lifecycles 4711      one seed, with its trace and the shortest plans
    python -m tests.support.lifecycles 0 10000   a range, with a table of the failed checks

A run has an event loop of its own with a virtual clock. All its choices are in a `Plan`, which is
drawn from the seed, so that the same seed does the same, as long as no code of the middleware
iterates over a set of objects: their order is that of their addresses. The middleware is used only
as its users do: through `SSEMiddleware`, a store, a metrics registry and `drain`.

`run` returns the failed checks. It never raises, also if the streams hang: the run then reports
what has not ended, and cancels it.
"""

import asyncio
import gc
import logging
import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from sse_middleware import (
    LogInfo,
    MemoryStore,
    SSEMiddleware,
    drain,
    resume_endpoint,
    streaming,
)
from sse_middleware.stores.base import Log, LogListener
from tests.support.asgi import body, http_scope, stream_start
from tests.support.clock import VirtualClockLoop
from tests.support.lifecycle_apps import AppRun
from tests.support.lifecycle_plans import (
    CLOSING_SECONDS,
    Plan,
    ServerPlan,
    StreamPlan,
    draw,
    is_fair,
    simpler,
)
from tests.support.lifecycle_server import Connection
from tests.support.lifecycle_viewers import LIVE, Viewer

TTL_SECONDS: Final = 1000.0
_ENDING_SECONDS: Final = 60.0
"""The time within which all apps end after the last client has left."""
_CLOSE_SECONDS: Final = 1.0
"""The time for the last write of a connection that the middleware ends."""
_MOST_TURNS: Final = 200_000
"""Calls of the clock in a run; more show a loop in which no time passes."""
PROBE: Final = "/probe"


class LivelockError(BaseException):
    """The event loop runs and no time passes."""


class LifecycleLoop(VirtualClockLoop):
    """A virtual clock that stops a run without progress."""

    def __init__(self) -> None:
        self.calls = 0
        super().__init__()

    def time(self) -> float:
        self.calls += 1
        if self.calls > _MOST_TURNS:
            raise LivelockError
        return super().time()


class RecordingStore(MemoryStore):
    """A memory store that records which logs were created, with the paths of their streams."""

    def __init__(self, clock: Any, *, is_shared: bool) -> None:
        super().__init__(ttl=TTL_SECONDS, clock=clock)
        self.is_shared = is_shared
        self.created: dict[str, str] = {}

    def create(self, info: LogInfo, producer: LogListener) -> Log:
        """Begin the log of a new stream."""
        self.created[info.stream_id] = info.path
        return super().create(info, producer)


class _Logs(logging.Handler):
    """Collect warnings and errors."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        self._formatter = logging.Formatter("%(levelname)s %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self._formatter.format(record))


class World:
    """All that one run has.

    Attributes:
        plan: its plan.
        loop: its event loop.
        store: the store of both middleware objects.
        registry: their metrics.
        runs: the runs of the apps.
        connections: all connections.
        viewers: all clients.
        trace: what has happened.
        reported: calls of the loop's exception handler.
        logs: lines of the log, from WARNING on.
        hung: what had not ended in time.
        problems: failed checks that were found on the way.
        connected_at_drain: connections that were open when the drain began, `None` before it.
    """

    def __init__(self, plan: Plan, loop: LifecycleLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.store = RecordingStore(loop.time, is_shared=plan.shared)
        self.registry = CollectorRegistry()
        self.runs: list[AppRun] = []
        self.connections: list[Connection] = []
        self.viewers: list[Viewer] = []
        self.trace: list[str] = []
        self.reported: list[str] = []
        self.logs = _Logs()
        self.hung: list[str] = []
        self.problems: list[tuple[str, str]] = []
        self.connected_at_drain: list[Connection] | None = None
        self.is_closing = False
        self._started_at = loop.time()
        self._endpoints = {
            f"{LIVE}/s{number}": resume_endpoint(
                f"s{number}", finished="replay" if stream.replays else None
            )
            for number, stream in enumerate(plan.streams)
        }
        self._middlewares = [self._middleware() for _ in range(2)]
        self._probing = asyncio.Event()

    def note(self, line: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.loop.time() - self._started_at:8.3f} {line}")

    def seconds_until_closing(self) -> float:
        """Return the time until all clients leave."""
        return max(0.0, self._started_at + CLOSING_SECONDS - self.loop.time())

    def has_rotated(self, connection: Connection) -> bool:
        """Return whether the cap has ended a connection in time, and not its stream."""
        is_capped = self.plan.rotates and connection.seconds >= (self.plan.cap or CLOSING_SECONDS)
        names = {event.event for event in connection.events}
        has_ended = connection.is_complete and not names & {"complete", "error"}
        # A client that blocks the last write for a second has left; it may read it later.
        return is_capped and has_ended and connection.longest_block < _CLOSE_SECONDS

    def is_listening(self, connection: Connection) -> bool:
        """Return whether the app of a connection receives its disconnect at once."""
        runs = [run for run in self.runs if run.origin is connection]
        return bool(runs) and runs[0].is_listening

    def connect(
        self,
        server: ServerPlan,
        scope: Scope,
        label: str,
        *,
        user: str = "",
        other: bool = False,
    ) -> Connection:
        """Open a connection."""
        connection = Connection(server, scope, label, self.note, user=user)
        scope["lifecycle"] = connection
        self.connections.append(connection)
        connection.open(self._middlewares[other])
        return connection

    async def live(self) -> None:
        """Run all clients, then wait for the end of all that they have started."""
        before = asyncio.all_tasks()
        clients = [
            asyncio.ensure_future(self._run_viewers(index, stream))
            for index, stream in enumerate(self.plan.streams)
        ]
        self.loop.call_later(CLOSING_SECONDS, self._close)
        draining = asyncio.ensure_future(self._drain()) if self.plan.drain_at is not None else None
        await asyncio.wait(clients)
        for client in clients:
            client.result()
        await self._wait_for([connection.task for connection in self.connections])
        await asyncio.sleep(5.0)
        if draining is None:
            await self._probe()
            draining = asyncio.ensure_future(drain())
        await self._wait_for([draining])
        await asyncio.sleep(1.0)
        self._stop_tasks(asyncio.all_tasks() - before, "task left: ")

    async def _wait_for(self, tasks: "list[asyncio.Task[None]]") -> None:
        _, pending = await asyncio.wait(tasks, timeout=_ENDING_SECONDS)
        self._stop_tasks(pending, "hung: ")

    def _stop_tasks(self, tasks: "set[asyncio.Task[Any]]", what: str) -> None:
        for task in tasks:
            label = repr(task)
            for connection in self.connections:
                if connection.task is task:
                    label, connection.has_cancelled = connection.label, True
            self.hung.append(f"{what}{label}")
            task.cancel()

    async def _run_viewers(self, index: int, stream: StreamPlan) -> None:
        path = f"/s{index}"
        viewers = [
            Viewer(self, plan, path, f"s{index}v{number}")
            for number, plan in enumerate(stream.viewers)
        ]
        self.viewers += viewers
        await asyncio.gather(*(viewer.run(viewers[0]) for viewer in viewers))

    def _close(self) -> None:
        self.is_closing = True

    async def _drain(self) -> None:
        assert self.plan.drain_at is not None
        await asyncio.sleep(self.plan.drain_at)
        self.note("drain")
        self.connected_at_drain = [c for c in self.connections if not c.closed.is_set()]
        await drain()

    async def _probe(self) -> None:
        """Open as many streams as there are slots; one that is not free rejects one of them."""
        limits = [n for n in (self.plan.max_streams, self.plan.max_per_client) if n is not None]
        if not limits:
            return
        headers = [(b"accept", b"text/event-stream")]
        probes = [
            self.connect(ServerPlan(), http_scope(path=PROBE, headers=headers), f"probe {number}")
            for number in range(min(limits))
        ]
        await asyncio.sleep(0.1)  # less than the shortest cap
        self._probing.set()
        await self._wait_for([probe.task for probe in probes])
        for probe in probes:
            if probe.status != 200 or not probe.is_complete:
                self.problems.append(("slot", f"{probe.label} gets {probe.status}"))

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == PROBE:
            await send(stream_start())
            await self._probing.wait()
            await send(body(b"data: probe\n\n", more=False))
            return
        if scope["path"].startswith(LIVE):
            await self._endpoints[scope["path"]](scope, receive, send)
            return
        if scope["method"] == "DELETE":  # a stop of a stream that there is not
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send(body(b"", more=False))
            return
        stream = self.plan.streams[int(scope["path"][2:])]
        name = scope["path"][1:]
        run = AppRun(stream.app, len(self.runs), scope["lifecycle"], self.note, name)
        self.runs.append(run)
        await run(scope, receive, send)

    def _middleware(self) -> SSEMiddleware:
        plan = self.plan
        marks = {
            f"/s{n}": streaming(
                name=f"s{n}", stream_name=f"s{n}" if stream.app.names == "mark" else None
            )
            for n, stream in enumerate(plan.streams)
        }
        options: dict[str, Any] = {"limit_action": "evict_oldest"} if plan.evicts else {}
        return SSEMiddleware(
            self._app,
            mark="*",
            marks=marks,
            store=self.store,
            registry=self.registry,
            secret="of both middleware objects, as of the workers of an app",
            stream_max_seconds=plan.cap,
            cap_action="rotate" if plan.rotates else "complete",
            heartbeat_interval=plan.heartbeat,
            linger_seconds=plan.linger,
            max_lingering=plan.max_lingering,
            send_timeout=plan.send_timeout,
            batch=plan.batch,
            max_streams=plan.max_streams,
            max_streams_per_client=plan.max_per_client,
            drain_seconds=plan.drain_seconds,
            **options,
        )


@dataclass
class Result:
    """What one run has shown.

    Attributes:
        plan: its plan.
        failures: the failed checks, as their names and what was found.
        trace: what has happened.
    """

    plan: Plan
    failures: list[tuple[str, str]]
    trace: list[str]

    @property
    def names(self) -> set[str]:
        """The names of the failed checks."""
        return {name for name, _ in self.failures}

    def __str__(self) -> str:
        """Return the plan, the failures and the end of the trace."""
        lines = [str(self.plan), *(f"  {name}: {text}" for name, text in self.failures)]
        return "\n".join([*lines, *self.trace[-60:]])


def run(plan: Plan, seed: int = 0) -> Result:
    """Run a plan and check it."""
    from tests.support.lifecycle_checks import check, check_timers  # noqa: PLC0415 - needs `World`

    state = random.getstate()
    random.seed(seed)  # the jitter of retries
    loop = LifecycleLoop()
    world = World(plan, loop)
    loop.set_exception_handler(lambda _, context: world.reported.append(_described(context)))
    logger = logging.getLogger("sse_middleware")
    logger.addHandler(world.logs)
    propagates, logger.propagate = logger.propagate, False
    failures: list[tuple[str, str]] = []
    try:
        with (
            mock.patch("time.time", loop.time),  # the ages of streams
            _unraisable_in(world.reported),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            try:
                loop.run_until_complete(world.live())
                failures += loop.run_until_complete(check(world))
                loop.run_until_complete(asyncio.sleep(TTL_SECONDS + 100))
                failures += check_timers(world)
                gc.collect()
                loop.run_until_complete(asyncio.sleep(0.01))
                loop.run_until_complete(loop.shutdown_asyncgens())
            except LivelockError:
                failures.append(("hang", "the loop runs and no time passes"))
            except Exception as exc:  # noqa: BLE001 - the other checks are of use too
                failures.append(("hang", f"the run raises {exc!r}"))
        texts = world.reported + [str(warning.message) for warning in caught]
        failures += [("report", text) for text in texts]
    finally:
        logger.removeHandler(world.logs)
        logger.propagate = propagates
        random.setstate(state)
        loop.close()
    return Result(plan, failures, world.trace)


def _described(context: dict[str, Any]) -> str:
    return f"{context['message']}: {context.get('exception')!r}"


@contextmanager
def _unraisable_in(reported: list[str]) -> Iterator[None]:
    hook = sys.unraisablehook
    sys.unraisablehook = lambda found: reported.append(f"{found.err_msg}: {found.exc_value!r}")
    try:
        yield
    finally:
        sys.unraisablehook = hook


@contextmanager
def quick_collections() -> Iterator[None]:
    """Let each run collect only its own garbage, when it has ended."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def shortest(plan: Plan, name: str, *, attempts: int = 1500) -> Result:
    """Return the run of a shorter plan in which the check `name` still fails."""
    best = run(plan)
    skipped = 0
    while name in best.names and attempts > 0:
        candidates = [other for other in simpler(best.plan) if is_fair(other)]
        # After a success, continue where it was, and try the earlier ones again at the end.
        for index in [*range(skipped, len(candidates)), *range(min(skipped, len(candidates)))]:
            attempts -= 1
            result = run(candidates[index])
            if name in result.names:
                best, skipped = result, index
                break
        else:
            break
    return best


def main(arguments: list[str]) -> None:
    """Run one seed or a range of seeds, and print what fails."""
    first = int(arguments[0])
    with quick_collections():
        if len(arguments) == 1:
            _print(f"seed {first}: {run(draw(first), first)}")
            for name in sorted(run(draw(first), first).names):
                _print(f"\nshortest plan in which {name!r} fails: {shortest(draw(first), name)}")
            return
        seeds: dict[str, int] = {}
        counts: Counter[str] = Counter()
        for seed in range(first, int(arguments[1])):
            for name in run(draw(seed), seed).names:
                counts[name] += 1
                seeds.setdefault(name, seed)
        for name, count in counts.most_common():
            _print(f"{name:20} fails in {count:5} runs, first in seed {seeds[name]}")


def _print(text: str) -> None:
    with suppress(BrokenPipeError):
        sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
