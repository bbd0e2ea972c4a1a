"""The server of the random lifecycles: one connection of a client, with the request's task.

It is strict as uvicorn is: a message in the wrong place raises a RuntimeError, `receive` returns
the disconnect after the end of the response, and writes to a client that has gone end in one of the
ways that servers have.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Scope

from sse_middleware import Event, EventParser
from tests.support.lifecycle_plans import BLOCKING, LAST, ServerPlan

_AFTER_SECONDS: Final = 3.0
"""The time for which the code after the app continues, longer than the grace periods."""


class ClientDisconnectedError(Exception):
    """The server's own exception for a write to a client that has gone."""


class Connection:
    """One request.

    Args:
        plan: the plan of the server.
        scope: the scope of the request.
        label: its name in the trace.
        trace: is called with the steps of the run.
        user: as the attribute.

    Attributes:
        user: whose credentials the request has, `""` for none.
        opened_at: the time of the request.
        after: the number of the event after which it continues by name, 0 for all events.
        start: the response start that the client has received.
        body: the bytes that the client has received.
        events: the events that it has dispatched.
        last_event_id: the id that it would reconnect with, `""` for none.
        retry: the seconds before it would reconnect.
        seconds: the duration of the connection, 0 while it is open.
        is_complete: whether it has received the end of the response.
        has_left: whether it has disconnected.
        closed: set when the client has no connection any more.
        failures: the exceptions of `send`, except those for a client that has gone.
        refusals: the exceptions of `send` for a client that has gone.
        overlaps: how many writes have begun during another write.
        longest_block: the longest time for which a write has blocked, in seconds.
        has_cancelled: whether the server has cancelled the request.
        raised: the exception of the app, as the server receives it.
        cancelling: `cancelling()` of the request's task after the app.
        is_over: whether the app has returned or raised.
        went_on: whether the code of the server after the app has run undisturbed.
        task: the request's task.
    """

    def __init__(
        self,
        plan: ServerPlan,
        scope: Scope,
        label: str,
        trace: Callable[[str], None],
        *,
        user: str = "",
    ) -> None:
        self.user = user
        self.opened_at = asyncio.get_running_loop().time()
        self.after = 0
        self.scope = scope
        self.label = label
        self.start: Message | None = None
        self.body = b""
        self.events: list[Event] = []
        self.last_event_id = ""
        self.retry = 3.0
        self.seconds = 0.0
        self.is_complete = False
        self.has_left = False
        self.closed = asyncio.Event()
        self.failures: list[Exception] = []
        self.refusals: list[Exception] = []
        self.overlaps = 0
        self.longest_block = 0.0
        self.has_cancelled = False
        self.raised: BaseException | None = None
        self.cancelling = 0
        self.is_over = False
        self.went_on = False
        self.task: asyncio.Task[None]
        self._plan = plan
        self._trace = trace
        self._parser = EventParser()
        self._messages = 0
        self._final_sent = False
        self._is_writing = False
        self._has_blocked = False
        self._has_body = True
        self._disconnected = asyncio.Event()
        self._blocked: asyncio.Future[None] | None = None
        self._canceller: asyncio.TimerHandle | None = None

    def open(self, app: ASGIApp) -> None:
        """Run `app` in the request's task."""
        self._trace(f"{self.label} opens {self.scope['method']}")
        self.task = asyncio.ensure_future(self._run(app))

    @property
    def status(self) -> int:
        """The status of the response, 0 for none."""
        return 0 if self.start is None else int(self.start["status"])

    @property
    def stream_id(self) -> str:
        """The public id of the stream, `""` if the response has none."""
        headers = {} if self.start is None else dict(self.start["headers"])
        return str(headers.get(b"x-stream-id", b"").decode())

    def disconnect(self) -> None:
        """Disconnect the client."""
        if self.closed.is_set():
            return
        self._trace(f"{self.label} leaves")
        self.has_left = True
        self._close()
        self._disconnected.set()
        if self._blocked is not None and self._plan.sends != "stuck" and not self._blocked.done():
            self._blocked.set_result(None)
        if self._plan.cancels is not None and not self.is_over:
            loop = asyncio.get_running_loop()
            self._canceller = loop.call_later(self._plan.cancels, self._cancel)

    async def send(self, message: Message) -> None:
        """Pass a message to the client."""
        number, self._messages = self._messages, self._messages + 1
        if self.has_left:
            self._refuse()
            return
        if number == self._plan.fails_at:
            self._fail(ValueError(f"message {number} of {self.label}"))
        self._check_order(message)
        self.overlaps += self._is_writing
        self._is_writing = True
        try:
            await self._write(message, number)
        finally:
            self._is_writing = False

    async def receive(self) -> Message:
        """Return the body of the request, and then its end."""
        if self._has_body:
            self._has_body = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _run(self, app: ASGIApp) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await app(self.scope, self.receive, self.send)
        except BaseException as exc:  # noqa: BLE001 - recorded
            self.raised = exc
        self.is_over = True
        self.cancelling = task.cancelling()
        self._trace(f"{self.label} is over: {self.raised!r}, cancelling() is {self.cancelling}")
        if self._canceller is not None:
            self._canceller.cancel()
        self._close()
        await asyncio.sleep(0)
        await asyncio.sleep(_AFTER_SECONDS)
        self.went_on = True

    def _close(self) -> None:
        if not self.closed.is_set():
            self.seconds = asyncio.get_running_loop().time() - self.opened_at
            self.closed.set()

    def _cancel(self) -> None:
        if not self.is_over:
            self._trace(f"{self.label}: the server cancels the request")
            self.has_cancelled = True
            self.task.cancel()

    def _refuse(self) -> None:
        """Handle a write to a client that has gone."""
        if self._plan.closed == "silent":
            return
        exc: Exception = ClientDisconnectedError(self.label)
        if self._plan.closed == "oserror":
            exc = ConnectionResetError(self.label)
        self.refusals.append(exc)
        raise exc

    def _fail(self, exc: Exception) -> None:
        self._trace(f"{self.label}: send raises {exc!r}")
        self.failures.append(exc)
        raise exc

    def _check_order(self, message: Message) -> None:
        is_start = message["type"] == "http.response.start"
        if self._final_sent or is_start is not (self.start is None):
            self._fail(RuntimeError(f"Unexpected ASGI message '{message['type']}'"))

    async def _write(self, message: Message, number: int) -> None:
        sends, order = self._plan.sends, self._plan.order
        if message["type"] == "http.response.start":
            self.start = message
        data = message.get("body", b"")
        is_final = message["type"] == "http.response.body" and not message.get("more_body", False)
        self._final_sent |= is_final
        if sends == "suspends":
            await asyncio.sleep(0)
        if self._blocks(number, is_final=is_final):
            self._has_blocked = sends == "slow"
            early = {"after": 0, "before": len(data), "part": len(data) // 2}[order]
            self._deliver(data[:early])
            data = data[early:]
            self._trace(f"{self.label}: message {number} blocks")
            has_limit = sends in ("laggy", "slow")
            try:
                await self._block(self._plan.block_seconds if has_limit else None)
            except asyncio.CancelledError:
                if order == "after":  # the server has not begun with the message
                    self._final_sent &= not is_final
                raise
        if self.has_left:
            self._refuse()
            return
        self._deliver(data)
        if is_final:
            self._trace(f"{self.label} ends")
            self.is_complete = True
            self._close()
            self._disconnected.set()
        if sends == "suspends":
            await asyncio.sleep(0)

    def _blocks(self, number: int, *, is_final: bool) -> bool:
        """Return whether the write of a message blocks; an empty response always fits."""
        plan = self._plan
        if plan.sends not in BLOCKING or self._has_blocked or self.status != 200:
            return False
        return is_final if plan.blocks_at == LAST else number >= plan.blocks_at

    async def _block(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        self._blocked = blocked = loop.create_future()
        began = loop.time()
        timer = None if seconds is None else loop.call_later(seconds, _release, blocked)
        try:
            await blocked
        finally:
            self._blocked = None
            self.longest_block = max(self.longest_block, loop.time() - began)
            if timer is not None:
                timer.cancel()

    def _deliver(self, data: bytes) -> None:
        if not data:
            return
        self.body += data
        new = self._parser.feed(data)
        self.events += new
        self.last_event_id = self._parser.last_event_id
        if self._parser.retry is not None:
            self.retry = self._parser.retry / 1000
        self._trace(f"{self.label} receives {', '.join(map(summary, new)) or data[:20]!r}")


def summary(event: Event) -> str:
    """Return the name of a control event, or the number of an event of an app."""
    return event.data[:8].split()[0] if event.event == "message" else event.event


def _release(blocked: "asyncio.Future[Any]") -> None:
    if not blocked.done():
        blocked.set_result(None)
