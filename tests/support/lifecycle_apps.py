"""The apps of the random lifecycles: each run records its calls of `send` and its cancellations.

The data of an event is `<run>.<number>` and padding. The number is given directly before the call
of `send`, so that the numbers have the order of the calls, in whatever task they are made.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import current_stream
from tests.support.asgi import body, stream_start
from tests.support.lifecycle_plans import AppPlan

_NUMBER: Final = re.compile(rb"(?:data:|word) (?:\{\"app\":\")?\d+\.(\d+)")
_CLEANUP_SECONDS: Final = 0.3


class AppError(Exception):
    """The exception of an app."""


class AppRun:
    """One run of an app.

    Args:
        plan: the plan of the app.
        index: the number of the run, which its events have.
        origin: the connection that has started it.
        trace: is called with the steps of the run.
        name: the name that it can give to its stream.

    Attributes:
        plan: the plan of the app.
        opened_at: when its response start has been sent, `None` if it has not.
        calls: `called`, `returned`, `raised` or `cancelled` for the `send` of each event.
        started_at: when it has sent a response start, or has tried to; `None` for never.
        late: the numbers of the events that it has sent after its last message.
        finals: when it has sent a last message, or has tried to.
        received: the exceptions that its calls of `send` have raised.
        strays: where it was cancelled although its task was not.
        raised: the exception with which it has ended.
        cancelling: `cancelling()` of its task at that time.
        was_cancelled: whether it has received a cancellation of its task.
        ended: whether it has ended.
    """

    def __init__(
        self, plan: AppPlan, index: int, origin: Any, trace: Callable[[str], None], name: str
    ) -> None:
        self.plan = plan
        self.opened_at: float | None = None
        self.index = index
        self.origin = origin
        self.calls: dict[int, str] = {}
        self.started_at: float | None = None
        self.late: set[int] = set()
        self.finals: list[float] = []
        self.received: list[Exception] = []
        self.strays: list[str] = []
        self.raised: BaseException | None = None
        self.cancelling = 0
        self.was_cancelled = False
        self.ended = False
        self._name = name
        self._trace = trace
        self._last = 0
        self._raises_own_cancel = False
        self._listener: asyncio.Task[None] | None = None
        self._send: Send
        self._receive: Receive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app."""
        self._send, self._receive = send, receive
        if self.plan.names == "early":
            current_stream().name(self._name)
        task = asyncio.current_task()
        assert task is not None
        try:
            if self.plan.writer == "starlette":
                await self._starlette(scope)
            else:
                await self._run()
        except BaseException as exc:
            self.raised, self.cancelling = exc, task.cancelling()
            raise
        finally:
            self.ended = True
            self._trace(f"app {self.index} ends: {self.raised!r}")

    @property
    def is_listening(self) -> bool:
        """Whether it waits for the disconnect of its client."""
        return self._listener is not None and not self._listener.done()

    @property
    def mandatory(self) -> set[int]:
        """The numbers of the events whose `send` has returned."""
        return {number for number, state in self.calls.items() if state == "returned"}

    async def send(self, message: Message) -> None:
        """Send a message and record what happens to it."""
        numbers = [int(found) for found in _NUMBER.findall(message.get("body", b""))]
        is_body = message["type"] == "http.response.body"
        now = asyncio.get_running_loop().time()
        if not is_body:
            self.started_at = now
        elif self.finals:
            self.late.update(numbers)
        elif not message.get("more_body", False):
            self.finals.append(now)
        self._record(numbers, "called")
        try:
            await self._send(message)
        except asyncio.CancelledError:
            self._record(numbers, "cancelled")
            self._check_cancel("send")
            raise
        except Exception as exc:
            self.received.append(exc)
            self._record(numbers, "raised")
            self._trace(f"app {self.index}: send{numbers} raises {exc!r}")
            raise
        self._record(numbers, "returned")
        if not is_body:
            self.opened_at = asyncio.get_running_loop().time()

    def _record(self, numbers: list[int], state: str) -> None:
        for number in numbers:
            self.calls[number] = state

    def _check_cancel(self, where: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._trace(f"app {self.index}: cancelled in {where}, cancelling() is {task.cancelling()}")
        if not (task.cancelling() or self._raises_own_cancel):
            self.strays.append(where)

    def _event(self, name: str = "") -> bytes:
        self._last += 1
        label = f"{self.index}.{self._last}"
        if self._last == 2 and self.plan.names == "late":
            current_stream().name(self._name)
        if self.plan.is_raw:
            return f"word {label} ".encode().ljust(self.plan.size, b"x") + b"\n\n"
        if name:
            return f'event: {name}\ndata: {{"app":"{label}"}}\n\n'.encode()
        return f"data: {label} ".encode().ljust(self.plan.size, b"x") + b"\n\n"

    async def _run(self) -> None:
        try:
            if self.plan.ending == "raises_start":
                raise AppError("before the start")
            if self.plan.listens != "never":
                self._listener = asyncio.ensure_future(self._listen())
            await self.send(stream_start())
            if self.plan.ending == "raises_first":
                raise AppError("before the first event")
            await self._write()
        except asyncio.CancelledError:
            self._check_cancel("the app")
            self.was_cancelled = not self._raises_own_cancel
            if await self._clean_up():
                raise
        finally:
            if self._listener is not None:
                self._listener.cancel()
                await asyncio.wait([self._listener])

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._trace(f"app {self.index} receives the disconnect")
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._check_cancel("the task that has received the disconnect")
            raise

    async def _clean_up(self) -> bool:
        """Clean up after a cancellation, and return whether it is raised again."""
        cleanup = self.plan.cleanup
        if cleanup == "awaits":
            try:
                await asyncio.sleep(_CLEANUP_SECONDS)
            except asyncio.CancelledError:
                self._check_cancel("its cleanup")
                raise
        elif cleanup == "raises":
            raise AppError("in the cleanup")
        elif cleanup == "sends":
            await self.send(body(self._event()))
        return cleanup != "swallows"

    async def _write(self) -> None:
        if self.plan.writer == "child":
            await self._write_in_child()
        elif self.plan.writer == "two":
            await self._write_in_two_tasks()
        else:
            await self._write_all()

    async def _write_in_child(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        before = task.cancelling()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write_all())
        except ExceptionGroup:
            # Up to Python 3.12, a group does not undo its own cancellation of this task.
            if task.cancelling() > before:
                task.uncancel()
            raise

    async def _write_all(self) -> None:
        if not await self._write_events():
            await self._end()

    async def _write_events(self) -> bool:
        """Write the events, and return whether the app has returned early."""
        for _ in range(self.plan.events):
            await self.send(body(self._event()))
            if await self._pause():
                return True
        return False

    async def _pause(self) -> bool:
        listener, seconds = self._listener, self.plan.pause
        if listener is None:
            if self.plan.writer != "flood":
                await asyncio.sleep(seconds)
            return False
        returns = self.plan.listens == "returns"
        if returns and self.plan.writer != "flood":
            await asyncio.wait([listener], timeout=seconds)
        elif self.plan.writer != "flood":
            await asyncio.sleep(seconds)
        return returns and listener.done()

    async def _write_in_two_tasks(self) -> None:
        tasks = [
            asyncio.ensure_future(self._write_events()),
            asyncio.ensure_future(self._write_and_be_cancelled()),
        ]
        try:
            await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result
        if True not in results:
            await self._end()

    async def _write_and_be_cancelled(self) -> bool:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        for number in range(1, self.plan.events + 1):
            timer: asyncio.Handle | None = None
            if number == self.plan.cancel_at and self.plan.cancel_delay:
                timer = loop.call_later(self.plan.cancel_delay, task.cancel)
            elif number == self.plan.cancel_at:
                timer = loop.call_soon(task.cancel)
            try:
                await self.send(body(self._event()))
                if await self._pause():
                    return True
            finally:
                if timer is not None:
                    timer.cancel()
        return False

    async def _end(self) -> None:
        ending = self.plan.ending
        if ending == "none":
            return
        if ending == "cancels":
            self._raises_own_cancel = True
            raise asyncio.CancelledError("the app's own")
        if ending == "raises":
            raise AppError("after its events")
        if ending in ("error_event", "complete_event"):
            await self.send(body(self._event(ending.partition("_")[0])))
        await self.send(body(self._event() if ending == "final_data" else b"", more=False))
        if ending == "late":
            await self.send(body(self._event()))
        elif ending == "final_raises":
            raise AppError("after the last message")

    async def _starlette(self, scope: Scope) -> None:
        response = StreamingResponse(self._generate(), media_type="text/event-stream")
        await response(scope, self._receive, self.send)

    async def _generate(self) -> AsyncIterator[bytes]:
        for _ in range(self.plan.events):
            yield self._event()
            await asyncio.sleep(self.plan.pause)
        if self.plan.ending.startswith("raises"):
            raise AppError("in the generator")
