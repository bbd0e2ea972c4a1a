"""Plans of random lifecycles: all choices of one seeded run, and their simplification.

A plan is data. It is drawn from `random.Random(seed)`, printed when a check fails, and shortened by
`simpler`, which returns the plans with one choice less.
"""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

ENDLESS: Final = 10**6
"""A number of events that no app reaches."""
_CHECK_SECONDS: Final = 0.5
"""A limit is checked in less time."""
CLOSING_SECONDS: Final = 30.0
"""The time at which all clients leave."""

WRITERS: Final = ("paced", "flood", "sleepy", "child", "two", "starlette")
"""Who writes: the request's task (with pauses, without, with long ones), a child task, two tasks
of which one is cancelled in its write, or a response of Starlette."""
LISTENING: Final = ("never", "returns", "continues")
"""Whether the app receives in a task of its own, and whether it returns after the disconnect."""
ENDINGS: Final = (
    "final",  # an empty last message
    "final_data",  # the last message has the last event
    "none",  # it returns without a last message
    "raises_start",  # before the response start
    "raises_first",  # before the first event
    "raises",
    "final_raises",  # after the last message
    "cancels",  # it raises its own CancelledError
    "error_event",  # it sends its own `error` and then the last message
    "complete_event",  # it sends its own `complete` and then the last message
    "late",  # it sends an event after the last message
)
CLEANUPS: Final = ("none", "awaits", "swallows", "raises", "sends")
"""What the app does when it is cancelled."""
NAMINGS: Final = ("", "mark", "mark", "early", "late")
"""Who names the stream: nobody, its mark, or the app before its start or its second event."""
SENDS: Final = ("instant", "suspends", "laggy", "slow", "forever", "stuck")
"""A `send` of the server: in a `laggy` one each write takes a while; `slow` blocks once, `forever`
until the client has disconnected, `stuck` until it is cancelled."""
BLOCKING: Final = ("laggy", "slow", "forever", "stuck")
LAST: Final = -1
"""In place of the number of a message: the last message of the response."""
ORDERS: Final = ("after", "before", "part")
"""When the bytes of a blocked write reach the client: after it, before it, or a half each."""
CLOSED: Final = ("silent", "oserror", "own")
"""A `send` to a client that has disconnected: nothing, an OSError, the server's own exception."""


@dataclass(frozen=True, kw_only=True)
class AppPlan:
    """One app.

    Attributes:
        writer: one of `WRITERS`.
        events: the number of its events; of each task if there are two.
        pause: the seconds after each event.
        size: the bytes of an event, at least.
        listens: one of `LISTENING`.
        ending: one of `ENDINGS`.
        cleanup: one of `CLEANUPS`.
        cancel_at: the event of the second task in whose write it is cancelled, 0 for none.
        cancel_delay: the seconds from the begin of that write to the cancellation.
        is_raw: whether its bytes are no event stream.
        names: one of `NAMINGS`.
    """

    writer: str = "paced"
    events: int = 3
    pause: float = 0.5
    size: int = 16
    listens: str = "never"
    ending: str = "final"
    cleanup: str = "none"
    cancel_at: int = 0
    cancel_delay: float = 0.0
    is_raw: bool = False
    names: str = ""


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """The server of one client.

    Attributes:
        sends: one of `SENDS`.
        blocks_at: the number of the message whose write blocks, 0 for the start, or `LAST`.
        block_seconds: for `slow` and `laggy`.
        order: one of `ORDERS`.
        closed: one of `CLOSED`.
        fails_at: the number of the message whose write raises a ValueError, `None` for none.
        cancels: the seconds from a disconnect to the cancellation of the request, `None` for none.
    """

    sends: str = "instant"
    blocks_at: int = 1
    block_seconds: float = 1.0
    order: str = "after"
    closed: str = "silent"
    fails_at: int | None = None
    cancels: float | None = None


@dataclass(frozen=True, kw_only=True)
class ViewerPlan:
    """One client of a stream, over all its connections.

    Attributes:
        eventsource: whether it is an `EventSource`; otherwise a plain client, which never returns
            unless it reads by name.
        starts_at: the time of its first request.
        leaves: the seconds after which it leaves each of its first connections.
        returns: whether it reconnects after the last of them.
        gap: the seconds without a connection after it has left one.
        other: whether it reconnects to the other middleware object.
        joins: whether it begins with the event id that the first client of the stream has.
        stops_at: the time at which it requests the end of the stream, `None` for never.
        user: whose credentials its requests have, `""` for none.
        by_name: whether it reads, and stops, the stream by its name.
        after: the number of the event after which it begins by name, 0 for all events.
        forgets: whether it makes the same request again, without its event id.
        server: its server.
    """

    eventsource: bool = True
    starts_at: float = 0.0
    leaves: tuple[float, ...] = ()
    returns: bool = False
    gap: float = 0.5
    other: bool = False
    joins: bool = False
    stops_at: float | None = None
    user: str = ""
    by_name: bool = False
    after: int = 0
    forgets: bool = False
    server: ServerPlan = field(default_factory=ServerPlan)


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """One path, with its app and its clients.

    Attributes:
        app: its app.
        replays: whether a stream that has finished is found by its name.
        viewers: its clients; the first one does not read by name.
    """

    app: AppPlan = field(default_factory=AppPlan)
    replays: bool = False
    viewers: tuple[ViewerPlan, ...] = (ViewerPlan(),)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run: settings of the middleware, with the times of the drain, and streams.

    Attributes:
        cap: `stream_max_seconds`.
        rotates: whether the cap ends only the connection.
        heartbeat: `heartbeat_interval`.
        linger: `linger_seconds`.
        max_lingering: as the option.
        send_timeout: as the option.
        batch: as the option.
        max_streams: as the option.
        max_per_client: `max_streams_per_client`.
        evicts: whether `limit_action` is set to `evict_oldest`.
        drain_at: the time at which the drain begins, `None` for never.
        drain_seconds: as the option.
        shared: whether the store is declared as shared with other workers.
        streams: the streams.
    """

    cap: float | None = None
    rotates: bool = False
    heartbeat: float | None = None
    linger: float = 5.0
    max_lingering: int = 100
    send_timeout: float | None = None
    batch: bool = True
    max_streams: int | None = None
    max_per_client: int | None = None
    evicts: bool = False
    drain_at: float | None = None
    drain_seconds: float = 5.0
    shared: bool = False
    streams: tuple[StreamPlan, ...] = (StreamPlan(),)

    def __str__(self) -> str:
        """Return the choices that differ from the defaults."""
        return _text(self)


def is_fair(plan: Plan) -> bool:
    """Return whether each app of a plan has to end by the contract.

    Without the middleware, an endless app and a write that is stuck never end. With it, they do if
    there is a cap, or a limit to the duration of a write; the rejections that limits cause have no
    such limit. An app that cancels a half-transmitted write and continues breaks its own stream. A
    client that leaves while the limits are checked has no stream, so that its app has no cap.
    """
    is_limited = bool(plan.max_streams or plan.max_per_client)
    for stream in plan.streams:
        viewers = stream.viewers
        is_direct = not all(viewer.eventsource or viewer.by_name for viewer in viewers)
        is_partial = any(viewer.server.order == "part" for viewer in viewers)
        if stream.app.writer == "two" and is_direct and is_partial:
            return False
        if stream.app.events >= ENDLESS and (
            plan.cap is None
            or is_direct
            or stream.app.is_raw
            or (is_limited and any(min(v.leaves, default=1) < _CHECK_SECONDS for v in viewers))
        ):
            return False
        is_unlimited = plan.send_timeout is None or is_limited or stream.app.is_raw
        if is_unlimited and any(viewer.server.sends == "stuck" for viewer in viewers):
            return False
    return True


def draw(seed: int) -> Plan:
    """Return the plan of a seed."""
    dice = random.Random(seed)
    streams = tuple(_stream(dice) for _ in range(dice.choices((1, 2, 3), (6, 3, 2))[0]))
    is_limited = dice.random() < 0.3
    plan = Plan(
        cap=dice.choice((None, None, 0.3, 2.0, 8.0)),
        rotates=dice.random() < 0.5,
        heartbeat=dice.choice((None, None, 0.5, 5.0)),
        linger=dice.choice((0.0, 0.5, 0.5, 5.0, 15.0)),
        max_lingering=dice.choice((0, 1, 100, 100)),
        send_timeout=dice.choice((None, 0.5, 5.0)),
        batch=dice.random() < 0.8,
        max_streams=dice.choice((None, 1, 2)) if is_limited else None,
        max_per_client=dice.choice((None, 1, 2)) if is_limited else None,
        evicts=dice.random() < 0.3,
        drain_at=_time(dice, 6.0) if dice.random() < 0.3 else None,
        drain_seconds=dice.choice((0.0, 1.0, 5.0)),
        shared=dice.random() < 0.4,
        streams=streams,
    )
    # Drawn last, by dice of its own, so that the rest of a seed does not depend on it.
    return _fair(_with_names(random.Random(-1 - seed), _fair(plan)))


def _fair(plan: Plan) -> Plan:
    """Return a plan with the changes that make it fair."""
    if is_fair(plan):
        return plan
    plan = dataclasses.replace(plan, cap=plan.cap or 4.0, send_timeout=plan.send_timeout or 5.0)
    if is_fair(plan):
        return plan
    plan = dataclasses.replace(plan, max_streams=None, max_per_client=None)
    if is_fair(plan):
        return plan
    streams = tuple(_fair_stream(stream) for stream in plan.streams)
    return dataclasses.replace(plan, streams=streams)


def _fair_stream(stream: StreamPlan) -> StreamPlan:
    app = dataclasses.replace(stream.app, events=min(stream.app.events, 20))
    viewers = [
        dataclasses.replace(viewer, server=dataclasses.replace(viewer.server, order="after"))
        for viewer in stream.viewers
    ]
    if app.is_raw:
        viewers = [
            dataclasses.replace(viewer, server=dataclasses.replace(viewer.server, sends="slow"))
            if viewer.server.sends == "stuck"
            else viewer
            for viewer in viewers
        ]
    return dataclasses.replace(stream, app=app, viewers=tuple(viewers))


def _time(dice: random.Random, longest: float) -> float:
    """Return a time, which is a round number for half of the times so that some coincide."""
    return dice.choice((0.0, 0.5, 1.0, 2.0)) if dice.random() < 0.4 else dice.uniform(0, longest)


def _stream(dice: random.Random) -> StreamPlan:
    viewers = [_viewer(dice, eventsource=dice.random() < 0.8)]
    if viewers[0].eventsource and dice.random() < 0.35:
        reader = _viewer(dice, eventsource=True)
        starts_at = viewers[0].starts_at + _time(dice, 4.0)
        viewers.append(dataclasses.replace(reader, joins=True, starts_at=starts_at))
    return StreamPlan(app=_app(dice), viewers=tuple(viewers))


def _app(dice: random.Random) -> AppPlan:
    writer = dice.choices(WRITERS, (3, 2, 2, 3, 5, 2))[0]
    pause = dice.choice((0.0, 0.001, 0.05, 0.5, 1.0))
    events = dice.choice((0, 1, 3, 8, 20))
    if writer == "flood":
        events, pause = dice.choice((30, 150)), 0.0
    elif writer == "sleepy":
        events, pause = dice.choice((1, 2, 3)), dice.choice((3.0, 5.0))
    elif dice.random() < 0.15:
        events, pause = ENDLESS, dice.choice((0.3, 1.0))
    return AppPlan(
        writer=writer,
        events=events,
        pause=pause,
        size=dice.choice((16, 16, 300, 5000)),
        listens=dice.choice(LISTENING),
        ending=dice.choice(ENDINGS) if dice.random() < 0.6 else "final",
        cleanup=dice.choice(CLEANUPS),
        cancel_at=dice.choice((0, 1, 2, 3, 5)) if writer == "two" else 0,
        cancel_delay=dice.choice((0.0, 0.001, 0.006, 0.03, 0.3)) if writer == "two" else 0.0,
    )


def _viewer(dice: random.Random, *, eventsource: bool) -> ViewerPlan:
    leaves = tuple(_time(dice, 4.0) for _ in range(dice.choice((0, 0, 1, 1, 2, 3))))
    return ViewerPlan(
        eventsource=eventsource,
        starts_at=_time(dice, 3.0) if dice.random() < 0.5 else 0.0,
        leaves=leaves if eventsource else leaves[:1],
        returns=eventsource and bool(leaves) and dice.random() < 0.7,
        gap=dice.choice((0.0, 0.01, 0.5, 2.0, 6.0)),
        other=dice.random() < 0.3,
        stops_at=_time(dice, 5.0) if eventsource and dice.random() < 0.1 else None,
        server=_server(dice),
    )


def _server(dice: random.Random) -> ServerPlan:
    sends = dice.choices(SENDS, (5, 4, 3, 3, 2, 2))[0]
    seconds = {"laggy": (0.005, 0.02, 0.2), "slow": (0.05, 0.5, 2.0, 6.0)}.get(sends, (1.0,))
    blocks = sends in BLOCKING
    return ServerPlan(
        sends=sends,
        blocks_at=dice.choice((LAST, 0, 1, 2, 3, 5)) if blocks else 1,
        block_seconds=dice.choice(seconds),
        order=dice.choice(ORDERS) if blocks else "after",
        closed=dice.choice(CLOSED),
        fails_at=dice.choice((0, 1, 2, 4)) if dice.random() < 0.08 else None,
        cancels=dice.choice((0.0, 3.0)) if dice.random() < 0.12 else None,
    )


def _with_names(dice: random.Random, plan: Plan) -> Plan:
    """Return a plan with users, names of streams, raw bodies and repeated requests, or without."""
    if dice.random() < 0.3:
        return plan
    streams = tuple(_with_names_of(dice, stream) for stream in plan.streams)
    return dataclasses.replace(plan, streams=streams)


def _with_names_of(dice: random.Random, stream: StreamPlan) -> StreamPlan:
    users = dice.choice((("",), ("ann",), ("ann",), ("ann", "bob")))
    names = dice.choice(NAMINGS)
    app = dataclasses.replace(stream.app, is_raw=dice.random() < 0.12, names=names)
    viewers = list(stream.viewers)
    while names and len(viewers) < 4 and dice.random() < 0.5:
        reader = _viewer(dice, eventsource=dice.random() < 0.5)
        starts_at, returns = _time(dice, 5.0), dice.random() < 0.5
        viewers.append(
            dataclasses.replace(reader, by_name=True, starts_at=starts_at, returns=returns)
        )
    return StreamPlan(
        app=app,
        replays=dice.random() < 0.5,
        viewers=tuple(_with_user(dice, viewer, users) for viewer in viewers),
    )


def _with_user(dice: random.Random, viewer: ViewerPlan, users: tuple[str, ...]) -> ViewerPlan:
    return dataclasses.replace(
        viewer,
        user=dice.choice(users),
        after=dice.choice((0, 0, 1, 3)) if viewer.by_name else 0,
        forgets=dice.random() < 0.4,
        stops_at=_time(dice, 5.0) if viewer.by_name and dice.random() < 0.1 else viewer.stops_at,
    )


_ITEMS: Final = ("streams", "viewers")


def simpler(plan: Any) -> Iterator[Any]:
    """Return each plan with one choice less: an item or a field with its default value.

    The items are first, because without one of them all of its choices are gone.
    """
    for item in sorted(dataclasses.fields(plan), key=lambda item: item.name not in _ITEMS):
        value = getattr(plan, item.name)
        default = _default(item)
        if value == default:
            continue
        if item.name not in _ITEMS:
            yield dataclasses.replace(plan, **{item.name: default})
        for other in _simpler_values(value, default):
            yield dataclasses.replace(plan, **{item.name: other})


def _default(item: "dataclasses.Field[Any]") -> Any:
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return item.default


def _simpler_values(value: Any, default: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        if len(value) > 1:
            yield from ((*value[:index], *value[index + 1 :]) for index in range(len(value)))
        for index, member in enumerate(value):
            if dataclasses.is_dataclass(member):
                for other in simpler(member):
                    yield (*value[:index], other, *value[index + 1 :])
            elif round(member, 1) != member:
                yield (*value[:index], round(member, 1), *value[index + 1 :])
    elif dataclasses.is_dataclass(value):
        yield from simpler(value)
    elif isinstance(value, float) and round(value, 1) != value:
        yield round(value, 1)
    elif type(value) is int and type(default) is int and value > default + 1:
        yield (value + default) // 2


def _text(plan: Any) -> str:
    parts = []
    for item in dataclasses.fields(plan):
        value = getattr(plan, item.name)
        if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            inner = ", ".join(_text(member) for member in value)
            parts.append(f"{item.name}=({inner},)")
        elif value != _default(item):
            shown = _text(value) if dataclasses.is_dataclass(value) else repr(value)
            parts.append(f"{item.name}={shown}")
    return f"{type(plan).__name__}({', '.join(parts)})"
