"""The clients of the random lifecycles: each makes requests for one stream until it has its end."""

import asyncio
from typing import TYPE_CHECKING, Final

from sse_middleware.stores.base import LogState
from tests.support.asgi import EVENTSOURCE, http_scope
from tests.support.lifecycle_plans import CLOSING_SECONDS, ServerPlan, ViewerPlan
from tests.support.lifecycle_server import Connection

if TYPE_CHECKING:
    from tests.support.lifecycles import World

BROWSER: Final = [*EVENTSOURCE, (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64)")]
LIVE: Final = "/live"
"""The prefix of the path at which a stream is found by its name."""
_MOST_CONNECTIONS: Final = 6
_REPEAT_SECONDS: Final = 0.5
"""The time after which a stream has ended whose client has made the same request again."""


class Viewer:
    """One client of a stream.

    Attributes:
        plan: its plan.
        path: the path of the stream.
        connections: its connections, the first one first.
        sessions: for each of them, the connection from which on it has not forgotten what it has.
        after_rotation: the indexes of the connections that follow a rotation.
        base: the event id with which it began.
        is_over: whether it makes no more requests.
    """

    def __init__(self, world: "World", plan: ViewerPlan, path: str, label: str) -> None:
        self.plan = plan
        self.path = path
        self.connections: list[Connection] = []
        self.sessions: list[int] = []
        self.after_rotation: set[int] = set()
        self.base = ""
        self.is_over = False
        self._held = ""
        self._label = label
        self._world = world
        self._checks: list[asyncio.Task[None]] = []

    async def run(self, first: "Viewer | None") -> None:
        """Make all its requests."""
        stopper = None
        await asyncio.sleep(self.plan.starts_at)
        if self.plan.joins and first is not None:
            self.base = self._held = first.held
        if self.plan.stops_at is not None:
            stopper = asyncio.ensure_future(self._stop(self.plan.stops_at))
        try:
            await self._connect_until_over()
        finally:
            self.is_over = True
            if stopper is not None:
                await stopper
            await asyncio.gather(*self._checks)

    @property
    def held(self) -> str:
        """The event id that it has."""
        return (self.connections[-1].last_event_id if self.connections else "") or self._held

    async def _connect_until_over(self) -> None:
        leaves = self.plan.leaves
        for index in range(_MOST_CONNECTIONS):
            connection = self._open(index)
            leaves_at = leaves[index] if index < len(leaves) else CLOSING_SECONDS
            has_ended = await self._wait(connection, leaves_at)
            connection.disconnect()
            self._held = connection.last_event_id or self._held
            is_last = index + 1 >= len(leaves) and not self.plan.returns
            if self._world.is_closing or (not has_ended and is_last) or self._is_done(connection):
                return
            if has_ended and self._world.has_rotated(connection):
                self.after_rotation.add(index + 1)
            await asyncio.sleep(connection.retry if has_ended else self.plan.gap)
            if self._world.is_closing:
                return

    def _open(self, index: int) -> Connection:
        forgets = self.plan.forgets and index > 0
        self.sessions.append(index if forgets or not index else self.sessions[-1])
        if forgets:
            self._held = ""
        headers = self._headers()
        if self._held and self.plan.eventsource:
            headers.append((b"last-event-id", self._held.encode()))
        server = self.plan.server
        if self._world.connected_at_drain is not None:
            server = ServerPlan()  # rejected: the responses are none of a stream
        after = self._position() if self.plan.by_name else 0
        scope = http_scope(path=self._request_path, headers=headers)
        if after:
            scope["query_string"] = b"after=%d" % after
        connection = self._world.connect(
            server,
            scope,
            f"{self._label}.{index + 1}",
            user=self.plan.user,
            other=self.plan.other and index > 0,
        )
        connection.after = after
        self.connections.append(connection)
        if forgets and not self.plan.by_name:
            self._check_repetition(self.connections[-2], connection)
        return connection

    @property
    def _request_path(self) -> str:
        return f"{LIVE}{self.path}" if self.plan.by_name else self.path

    def _headers(self) -> list[tuple[bytes, bytes]]:
        headers = [*BROWSER] if self.plan.eventsource else [(b"accept", b"*/*")]
        if self.plan.user:
            headers.append((b"authorization", b"Bearer " + self.plan.user.encode()))
        return headers

    def _position(self) -> int:
        """Return the number of the event after which it continues by name."""
        if not self.connections or self.sessions[-1] == len(self.connections):
            return self.plan.after
        last = self.connections[-1]
        if self.plan.eventsource:
            return 0  # it has an id
        return last.after + len(last.events) if last.status == 200 else last.after

    def _check_repetition(self, left: Connection, again: Connection) -> None:
        """Check that its stream ends if it lingers, because the same request is made again."""
        plan, world = self.plan, self._world
        is_known = bool(plan.user and plan.eventsource and left.has_left and left.stream_id)
        is_same = not plan.other and world.connected_at_drain is None
        if is_known and is_same and world.is_listening(left):
            self._checks.append(asyncio.ensure_future(self._check_ended(left, again)))

    async def _check_ended(self, left: Connection, again: Connection) -> None:
        world = self._world
        await asyncio.sleep(_REPEAT_SECONDS)
        found = await world.store.find(left.stream_id)
        is_read = any(
            other.stream_id == left.stream_id and other is not left for other in world.connections
        )
        if found is None or found.state is not LogState.RUNNING or is_read or again.has_left:
            return
        if again.status == 200 and world.connected_at_drain is None:
            text = f"the stream of {left.label} continues after {again.label}"
            world.problems.append(("repetition", text))

    async def _wait(self, connection: Connection, seconds: float) -> bool:
        """Wait for the end of a connection, and return whether it has come in time."""
        closing = asyncio.ensure_future(connection.closed.wait())
        seconds = min(seconds, self._world.seconds_until_closing())
        done, _ = await asyncio.wait([closing], timeout=seconds)
        closing.cancel()
        return bool(done)

    def _is_done(self, connection: Connection) -> bool:
        """Return whether the page closes its `EventSource`, or the browser does."""
        if connection.start is not None and connection.status != 200:
            return True
        if not self.plan.eventsource:
            return not self.plan.by_name or connection.is_complete
        last = connection.events[-1] if connection.events else None
        if last is None or last.event not in ("complete", "error"):
            return False
        return last.event == "error" or '"reason":"finished"' in last.data or '"app"' in last.data

    async def _stop(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        headers = self._headers()
        if not self.plan.by_name:
            if not self.held:
                return
            headers.append((b"last-event-id", self.held.encode()))
        scope = http_scope(method="DELETE", path=self._request_path, headers=headers)
        label = f"{self._label} stop"
        self._world.connect(ServerPlan(), scope, label, user=self.plan.user)
