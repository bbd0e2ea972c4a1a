"""The checks of a random lifecycle: what must hold when all has ended.

Each check yields its name and what was found. They use the bytes that clients have received, the
records of the apps and servers, the metrics, and the logs that the store finds.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from sse_middleware import Event, EventParser
from sse_middleware.stores.base import LogState
from tests.support.lifecycle_apps import AppRun
from tests.support.lifecycle_plans import Plan
from tests.support.lifecycle_server import Connection
from tests.support.lifecycle_viewers import LIVE, Viewer
from tests.support.lifecycles import PROBE, World

Failure = tuple[str, str]
CONTROLS = ("start", "heartbeat", "complete", "error", "reset")


async def check(world: World) -> list[Failure]:
    """Return the failed checks of a run that has ended."""
    failures = [*world.problems, *(("hang", text) for text in world.hung)]
    for connection in world.connections:
        failures += _check_server(world, connection)
        failures += _check_bytes(world, connection)
        failures += _check_ends(world, connection.label, connection.events)
        failures += _check_access(world, connection)
    for run in world.runs:
        failures += _check_app(run)
    for viewer in world.viewers:
        failures += _check_viewer(world, viewer)
    failures += _check_streams(world)
    failures += _check_metrics(world)
    failures += _check_cap(world)
    failures += [failure async for failure in _check_logs(world)]
    return failures


def check_timers(world: World) -> Iterator[Failure]:
    """Check that the loop has no timer after a time in which all of them have fired."""
    loop: Any = world.loop
    for timer in loop._scheduled:
        if not timer.cancelled():
            yield "timer", repr(timer)


def _check_server(world: World, connection: Connection) -> Iterator[Failure]:
    """Check what the server observes of one request."""
    label, run = connection.label, _run_of(world, connection)
    if not connection.is_over:
        return  # it has hung
    if not connection.has_cancelled:
        if connection.cancelling:
            yield "cancelling", f"{label}: cancelling() is {connection.cancelling}"
        if not connection.went_on:
            yield "stray cancel", f"{label}: the code after the app is cancelled"
    if connection.overlaps:
        yield "overlap", f"{label}: {connection.overlaps} writes begin during another one"
    yield from _check_exceptions(connection, run)
    for exc in connection.failures:
        if isinstance(exc, RuntimeError) and not (run and run.late):
            yield "protocol", f"{label}: {exc}"
        if not _is_reported(world, connection, run, exc):
            yield "swallowed", f"{label}: nothing reports {exc!r}"


def _check_exceptions(connection: Connection, run: AppRun | None) -> Iterator[Failure]:
    """Check that the exception of the app reaches the server, and no other."""
    label, raised, app = connection.label, connection.raised, run.raised if run else None
    if run is not None and not run.ended:
        yield "exception", f"{label}: the call has ended, and the app has not"
    is_cancelled = connection.has_cancelled and isinstance(raised, asyncio.CancelledError)
    if isinstance(app, Exception) and raised is not app and not is_cancelled:
        yield "exception", f"{label}: the app raises {app!r}, the server receives {raised!r}"
    if isinstance(app, asyncio.CancelledError) and run is not None and not run.cancelling:
        if not isinstance(raised, asyncio.CancelledError):
            yield "exception", f"{label}: the server does not receive the app's CancelledError"
        return
    if raised is None or (raised is app and isinstance(app, Exception)):
        return
    if isinstance(raised, asyncio.CancelledError):
        if not connection.has_cancelled:
            yield "exception", f"{label}: the server receives a CancelledError"
        return
    own = [*connection.failures, *connection.refusals]
    if not any(exc in own for exc in _flat(raised)):
        yield "exception", f"{label}: the server receives {raised!r}, which the app does not raise"


def _is_reported(world: World, connection: Connection, run: AppRun | None, exc: Exception) -> bool:
    """Return whether the app, the server or the log has an exception of `send`."""
    if exc in _flat(connection.raised) or (run is not None and exc in run.received):
        return True
    return any(type(exc).__name__ in line or str(exc) in line for line in world.logs.lines)


def _flat(exc: BaseException | None) -> list[BaseException]:
    """Return an exception with its causes, and with the exceptions of a group."""
    found: list[BaseException] = []
    due = [exc]
    while due:
        other = due.pop()
        if other is not None and all(other is not known for known in found):
            found.append(other)
            group = other.exceptions if isinstance(other, BaseExceptionGroup) else ()
            due += [*group, other.__cause__, other.__context__]
    return found


def _check_bytes(world: World, connection: Connection) -> Iterator[Failure]:
    """Check that a client has received a prefix of a valid stream."""
    for event in connection.events:
        if _number(event) is None and not _is_control(connection, event):
            yield "bytes", f"{connection.label} dispatches {event!r}"


def _is_control(connection: Connection, event: Event) -> bool:
    if connection.scope["path"] == PROBE:
        return event.data == "probe"
    try:
        return event.event in CONTROLS and isinstance(json.loads(event.data), dict)
    except ValueError:
        return False


def _check_ends(world: World, label: str, events: list[Event]) -> Iterator[Failure]:
    """Check that a connection has one end at most, and nothing after it.

    Whether an app's own end is its last event is known only later: a heartbeat may follow it.
    """
    ends = [event for event in events if event.event in ("complete", "error")]
    if len(ends) > 1:
        yield "second end", f"{label} receives {', '.join(event.event for event in ends)}"
    elif ends:
        after = [event.event for event in events[events.index(ends[0]) + 1 :]]
        if after and (set(after) != {"heartbeat"} or _number(ends[0]) is None):
            yield "after the end", f"{label} receives {', '.join(after)} after {ends[0].event}"
    if world.plan.drain_at is None and any(_reason(event) == "shutdown" for event in events):
        yield "false shutdown", f"{label} receives it without a drain"


def _check_app(run: AppRun) -> Iterator[Failure]:
    if not run.ended:
        yield "hang", f"the app {run.index} has not ended"
    for where in run.strays:
        yield "stray cancel", f"the app {run.index} is cancelled in {where}; its task is not"


def _check_viewer(world: World, viewer: Viewer) -> Iterator[Failure]:
    """Check the events of a client over all its connections, for each stream that it has read."""
    seen: dict[tuple[int, str], list[Event]] = {}
    inside: dict[tuple[int, str], bool] = {}
    for index, connection in enumerate(viewer.connections):
        key = viewer.sessions[index], connection.stream_id
        inside.setdefault(key, connection.after > 0)
        events = seen.setdefault(key, [])
        events += [event for event in connection.events if _number(event) is not None]
        run = _run_with_id(world, connection.stream_id)
        label = f"{connection.label}, stream of the app {run.index if run else None}"
        if run is not None and run.plan.is_raw:
            yield from _check_raw(connection, run)
        elif run is not None:
            is_inside = inside[key] or (not key[0] and _joined_inside(viewer, events))
            yield from _check_order(viewer, label, events, run, is_inside=is_inside)
            if _is_finished(viewer, connection):
                yield from _check_whole(viewer, connection, label, events, run, is_inside=is_inside)
        is_wrong = _resets_are_wrong(world) and not viewer.plan.by_name
        names = [event.event for event in connection.events]
        if index in viewer.after_rotation and "reset" in names and is_wrong:
            yield "reset", f"{label} resets a client that the middleware has disconnected"


def _check_access(world: World, connection: Connection) -> Iterator[Failure]:
    """Check that a client receives streams of its own user only, and by name the latest one."""
    for event in connection.events:
        number = _number(event)
        owner = "" if number is None else world.runs[number[0]].origin.user
        if owner not in ("", connection.user):
            yield "access", f"{connection.label} of {connection.user!r} receives {event.data[:20]}"
    run = _run_with_id(world, connection.stream_id)
    if run is None or not connection.scope["path"].startswith(LIVE):
        return
    path = connection.scope["path"].removeprefix(LIVE)
    others = [
        other
        for other in world.runs
        if other.origin.scope["path"] == path and other.origin.user == connection.user != ""
    ]
    if run not in others or not run.plan.names:
        yield "access", f"{connection.label} receives the stream of the app {run.index} by name"
    newer = [
        other.index
        for other in others[others.index(run) + 1 :]
        if other.opened_at is not None and other.opened_at < connection.opened_at
    ]
    # Without limits, a stream with a mark has its name before its start has been sent.
    has_limits = world.plan.max_streams or world.plan.max_per_client
    if newer and run.plan.names == "mark" and not has_limits and not connection.last_event_id:
        yield "latest", f"{connection.label} receives the app {run.index}, and not {newer}"


_WORDS = re.compile(rb"(?:word \d+\.\d+ x*\n\n)*")


def _check_raw(connection: Connection, run: AppRun) -> Iterator[Failure]:
    """Check that nothing is added to a body that is no event stream, once it has begun."""
    begin = connection.body.find(b"word ")
    tail = connection.body[begin:] if begin >= 0 else b""
    whole = _WORDS.match(tail)
    rest = tail[whole.end() if whole else 0 :]
    if rest and not b"word ".startswith(rest) and not rest.startswith(b"word "):
        yield "raw", f"{connection.label} receives {rest[:40]!r}"
    own = [int(number) for number in re.findall(rb"word \d+\.(\d+) x*\n\n", tail)]
    if own != sorted(set(own)):
        yield "order", f"{connection.label} receives the words {own}"
    expected = run.mandatory - run.late
    # A cap may have ended the stream before its first bytes.
    is_whole = connection.is_complete and run.finals and not connection.events
    last = max(expected if is_whole else own, default=0)
    missing = {number for number in expected if number <= last} - set(own)
    if missing:
        yield "loss", f"{connection.label} receives the words {own} without {sorted(missing)}"


def _check_order(
    viewer: Viewer, label: str, events: list[Event], run: AppRun, *, is_inside: bool
) -> Iterator[Failure]:
    numbers = [_number(event) for event in events]
    own = [number for index, number in filter(None, numbers) if index == run.index]
    if len(own) < len(numbers):
        yield "bytes", f"{label} has events of another run: {numbers}"
    if own != sorted(set(own)):
        yield "order", f"{label} receives the events {own}"
    first = min(own, default=1) if is_inside else 1
    missing = set(range(first, max(own, default=0))) & run.mandatory - set(own)
    if missing:
        yield "loss", f"{label} receives {own} without {sorted(missing)}"
    if not viewer.plan.eventsource:
        return
    positions = [int((event.id or "-0").rpartition("-")[2].partition(".")[0]) for event in events]
    start = positions[0] if positions and is_inside else 1
    if positions != list(range(start, start + len(positions))):
        yield "ids", f"{label} receives the ids {positions}"


def _joined_inside(viewer: Viewer, events: list[Event]) -> bool:
    """Return whether a client has begun to read a stream after its first event."""
    secret, _, position = viewer.base.rpartition("-")
    secrets = {(event.id or "").rpartition("-")[0] for event in events}
    return bool(viewer.base) and secrets == {secret} and position != "0"


def _is_finished(viewer: Viewer, connection: Connection) -> bool:
    """Return whether the client has received the whole stream, as far as it knows."""
    if not connection.is_complete or connection.status != 200:
        return False
    if not viewer.plan.eventsource:
        return True
    last = connection.events[-1] if connection.events else None
    if last is None or last.event != "complete":
        return False
    return _number(last) is not None or _reason(last) == "finished"


def _check_whole(
    viewer: Viewer,
    connection: Connection,
    label: str,
    events: list[Event],
    run: AppRun,
    *,
    is_inside: bool,
) -> Iterator[Failure]:
    own = {number for _, number in filter(None, map(_number, events))}
    # The app's own `complete` is in the log, also if its server has rejected the write.
    is_own_end = viewer.plan.eventsource and _number(connection.events[-1]) is not None
    if not run.finals and not is_own_end:
        yield "false finish", f"{label} ends, and the app has not"
    first = min(own, default=1) if is_inside else 1
    beyond = run.late
    missing = {number for number in run.mandatory if number >= first} - own - beyond
    if missing and not ((viewer.base or is_inside) and not own):
        yield "loss", f"{label} ends without {sorted(missing)}"


def _resets_are_wrong(world: World) -> bool:
    """Return whether a log must be kept until the client reconnects."""
    plan = world.plan
    # A client that is cut because it does not read may read again, and return, late.
    may_linger = bool(plan.linger) and (plan.max_lingering > 0 or plan.send_timeout is None)
    return may_linger and plan.drain_at is None and _is_calm(world)


def _check_streams(world: World) -> Iterator[Failure]:
    """Check that the connections of one stream have all had the same end."""
    ends: dict[str, set[str]] = {}
    for connection in world.connections:
        found = [event for event in connection.events if event.event in ("complete", "error")]
        for event in found[:1]:
            ends.setdefault(connection.stream_id, set()).add(f"{event.event} {_reason(event)}")
    for stream_id, names in ends.items():
        if len(names) > 1:
            run = _run_with_id(world, stream_id)
            label = f"the stream of the app {run.index if run else None}"
            yield "second end", f"{label} ends with {', '.join(sorted(names))}"


def _check_metrics(world: World) -> Iterator[Failure]:
    """Check that each stream is reported once, and that no gauge has a rest."""
    started, uncertain = _started(world)
    ended: Counter[str] = Counter()
    for metric in world.registry.collect():
        for sample in metric.samples:
            if sample.name == "sse_streams_total":
                ended[sample.labels["route"]] += int(sample.value)
                yield from _check_outcome(world, **sample.labels)
            is_gauge = "active" in sample.name or "lingering" in sample.name
            if is_gauge and sample.value:
                yield "gauge", f"{sample.name} is {sample.value:g}"
    for route in sorted(started | ended):
        fewest = started[route] - uncertain[route]
        if _is_planned(world, route) and not fewest <= ended[route] <= started[route]:
            text = f"{started[route]} streams of {route} have started, {ended[route]} are reported"
            yield "reports", text


def _is_planned(world: World, route: str) -> bool:
    """Return whether a route is that of a planned stream, and not of the probes."""
    return any(viewer.path[1:] == route for viewer in world.viewers)


def _started(world: World) -> tuple[Counter[str], Counter[str]]:
    """Return the number of streams by path: of logs if there are any, else of response starts.

    An app that has been rejected at its response start does not know that. The second result is the
    number of those that may not be streams: their clients left while the limits were checked.
    """
    has_limits = bool(world.plan.max_streams or world.plan.max_per_client)
    logs = Counter(path[1:] for path in world.store.created.values())
    starts = Counter(
        run.origin.scope["path"][1:]
        for run in world.runs
        if run.started_at is not None and run.origin.status in (0, 200)
    )
    plain = {
        viewer.path[1:]
        for viewer in world.viewers
        if not (viewer.plan.eventsource or viewer.plan.by_name)
    }
    left = Counter(
        run.origin.scope["path"][1:]
        for run in world.runs
        if run.started_at is not None and run.origin.status == 0 and run.origin.has_left
    )
    return (
        logs + Counter({path: starts[path] for path in plain if not logs[path]}),
        Counter({path: left[path] for path in plain if has_limits and not logs[path]}),
    )


def _check_outcome(world: World, route: str, outcome: str, **_: str) -> Iterator[Failure]:
    if outcome == "shutdown" and world.plan.drain_at is None:
        yield "false shutdown", f"a stream of {route} is counted so without a drain"
    if outcome == "cancelled" and not _is_stopped(world, route):
        yield "access", f"a stream of {route} is stopped, and nobody may do that"
    if outcome == "duration_cap" and route in _finished_in_time(world):
        yield "false cap", f"a stream of {route} is counted so, and all have ended before it"


def _is_stopped(world: World, route: str) -> bool:
    """Return whether a client that may stop a stream of a route has requested it."""
    owners = {run.origin.user for run in world.runs if run.origin.scope["path"][1:] == route}
    return any(
        "" in owners or connection.user in owners
        for connection in world.connections
        if connection.scope["method"] == "DELETE" and connection.scope["path"].endswith(route)
    )


def _check_cap(world: World) -> Iterator[Failure]:
    """Check that the cap does not act on a stream that has ended."""
    finished = _finished_in_time(world)
    for line in world.logs.lines:
        if "cap" in line and finished & set(line.replace(",", " ").split()):
            yield "false cap", line
    plan = world.plan
    stops = any(viewer.plan.stops_at is not None for viewer in world.viewers)
    if plan.send_timeout is None and plan.drain_at is None and _is_calm(world) and not stops:
        for run in world.runs:
            if run.was_cancelled and run.origin.scope["path"][1:] in finished:
                yield "false cap", f"the app {run.index} is cancelled after its last message"


def _finished_in_time(world: World) -> set[str]:
    """Return the paths of kept streams whose apps have sent their last messages before the cap."""
    paths = {viewer.path[1:] for viewer in world.viewers if viewer.plan.eventsource}
    late = {run.origin.scope["path"][1:] for run in world.runs if not _is_in_time(world.plan, run)}
    return paths - late if world.plan.cap is not None else set()


def _is_in_time(plan: Plan, run: AppRun) -> bool:
    if plan.cap is None or run.started_at is None or not run.finals:
        return False
    # Rotations are spread over a tenth of the cap.
    return run.finals[0] < run.started_at + plan.cap * (0.9 if plan.rotates else 1)


async def _check_logs(world: World) -> AsyncIterator[Failure]:
    """Check that each log has ended, and what it has."""
    store = world.store
    for stream_id in store.created:
        run = _run_with_id(world, stream_id)
        label = f"the log of the app {run.index if run else None}"
        found = await store.find(stream_id)
        if found is None:
            is_raw = run is not None and run.plan.is_raw
            if not is_raw and _was_cut_by_drain(world, stream_id):
                yield "drain", f"{label} is dropped, and the drain has disconnected its client"
            continue
        if found.state is LogState.RUNNING:
            yield "log", f"{label} has not ended"
            continue
        events = await _read_log(world, stream_id)
        for failure in _check_ends(world, label, events):
            yield failure
        numbers = [number for _, number in filter(None, map(_number, events))]
        if numbers != sorted(set(numbers)):
            yield "order", f"{label} has the events {numbers}"
        missing = set(range(1, max(numbers, default=0))) - set(numbers)
        if run is not None and missing & run.mandatory:
            yield "loss", f"{label} has {numbers}"


async def _read_log(world: World, stream_id: str) -> list[Event]:
    frames = b""
    async with aclosing(world.store.follow(stream_id, 0)) as batches:
        async for batch in batches:
            frames += batch.frames
    return EventParser().feed(frames)


def _was_cut_by_drain(world: World, stream_id: str) -> bool:
    """Return whether a drain has disconnected a client that may resume on another worker."""
    plan = world.plan
    if not plan.shared or plan.linger <= plan.drain_seconds or not _is_calm(world):
        return False
    cut = [c for c in world.connected_at_drain or () if c.stream_id == stream_id]
    return any(
        c.is_complete and not {e.event for e in c.events} & {"complete", "error"} for c in cut
    )


def _is_calm(world: World) -> bool:
    """Return whether no slot and no server ends a stream."""
    plan = world.plan
    servers = [viewer.server for stream in plan.streams for viewer in stream.viewers]
    is_cancelled = any(server.cancels is not None for server in servers)
    return not (plan.max_streams or plan.max_per_client or is_cancelled)


def _run_of(world: World, connection: Connection) -> AppRun | None:
    return next((run for run in world.runs if run.origin is connection), None)


def _run_with_id(world: World, stream_id: str) -> AppRun | None:
    if not stream_id:
        return None
    return next((run for run in world.runs if run.origin.stream_id == stream_id), None)


def _number(event: Event) -> tuple[int, int] | None:
    """Return the run and the number of an event of an app, `None` for any other event."""
    text = event.data.rstrip("x").rstrip()
    if event.event in ("error", "complete"):
        try:
            text = json.loads(event.data).get("app", "")
        except ValueError:
            return None
    elif event.event != "message":
        return None
    index, _, number = text.partition(".")
    return (int(index), int(number)) if index.isdigit() and number.isdigit() else None


def _reason(event: Event) -> str:
    try:
        reason = json.loads(event.data).get("reason", "")
    except ValueError:
        return ""
    return str(reason)
