"""What there is once in a process, whatever the number of middlewares and event loops in it.

Metrics of one name can stand in a registry once, so that all middlewares which count in it share
them. A signal comes to the process, so that all its loops hear of it by one handler, which hands it
on to the one that was there.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

from sse_middleware._once import OncePerKey
from sse_middleware.stream.drain import Drain

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE_SHUTDOWN_SECONDS = 1.0
"""Ctrl-C reaches a worker twice: from the terminal, and from its parent, which has got it too."""
_POLL_SECONDS = 0.02
_LOOK_SECONDS = 0.5
_SERVES = "worker_serve"
"""What hypercorn's main task runs."""


class Shutdown:
    """Tell the streams of all loops in the process that it ends.

    Attributes:
        begun: whether any loop's server has ever begun to end.
    """

    def __init__(self) -> None:
        self.begun = False
        self.drain_of = OncePerKey[asyncio.AbstractEventLoop, Drain](self._join)
        self._signalled_at: float | None = None

    def on_signal(self) -> None:
        """Begin; a second signal, later than by the way of the first, ends all now."""
        now = time.monotonic()
        first = self._signalled_at is None
        if self._signalled_at is None:
            self._signalled_at = now
        if first or now - self._signalled_at > _ONE_SHUTDOWN_SECONDS:
            self._tell(Drain.begin if first else Drain.hurry)

    async def drain(self) -> None:
        """Let go or end all streams of the process, in `SSE_DRAIN_SECONDS`, and wait for that.

        For servers whose signals we do not see, such as one that runs in a thread. It may be called
        in any event loop, before the server is told to end; new streams are refused from then on.
        """
        self.drain_of(asyncio.get_running_loop())
        self._tell(Drain.begin)
        # Events are of one loop each, so it is asked.
        while any(  # noqa: ASYNC110
            len(drain) or not drain.begun
            for loop, drain in self.drain_of.items()
            if loop.is_running()
        ):
            await asyncio.sleep(_POLL_SECONDS)

    def _tell(self, what: Callable[[Drain], None]) -> None:
        self.begun = True
        for loop, drain in self.drain_of.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(what, drain)

    def _join(self, loop: asyncio.AbstractEventLoop) -> Drain:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                _listen(number, self)
        drain = Drain()
        for task in asyncio.all_tasks(loop):
            if _is_hypercorns(task):
                loop.call_later(_LOOK_SECONDS, self._look_at, loop, task, drain)
        return drain

    def _look_at(
        self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], drain: Drain
    ) -> None:
        """Begin to drain where hypercorn, which tells nobody, waits for its connections.

        From Python 3.12.1 on it does so for ever: "wait until ... all active connections have
        finished" (https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.Server).
        """
        if any(code.co_name == "wait_closed" for code in _awaited_by(task)):
            self.begun = True
            drain.begin()
        elif not task.done():
            loop.call_later(_LOOK_SECONDS, self._look_at, loop, task, drain)


class ChainedSignalHandler:
    """A signal handler in front of another one.

    It carries the `__self__` of the other, by which sse-starlette finds the server.
    """

    def __init__(self, shutdown: Shutdown, handler: Callable[[int, FrameType | None], Any]) -> None:
        self._shutdown = shutdown
        self._handler = handler
        if hasattr(handler, "__self__"):
            self.__self__ = handler.__self__

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal, then call the handler that was installed before."""
        self._shutdown.on_signal()
        self._handler(number, frame)


def _listen(number: int, shutdown: Shutdown) -> None:
    """Hear of a signal, where a server handles it: else it ends the process, or its main task."""
    handler = signal.getsignal(number)
    if not callable(handler) or handler is signal.default_int_handler:
        return
    function = getattr(handler, "func", handler)  # asyncio's own is partial
    is_asyncios = isinstance(getattr(function, "__self__", None), asyncio.Runner)
    if not (is_asyncios or isinstance(handler, ChainedSignalHandler)):
        signal.signal(number, ChainedSignalHandler(shutdown, handler))


def _is_hypercorns(task: asyncio.Task[Any]) -> bool:
    return any(
        code.co_name == _SERVES and "hypercorn" in code.co_filename for code in _awaited_by(task)
    )


def _awaited_by(task: asyncio.Task[Any]) -> Iterator[CodeType]:
    """Return the coroutines in which a task waits, from the outside in."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        if (code := getattr(awaited, "cr_code", None)) is not None:
            yield code
        awaited = getattr(awaited, "cr_await", None)


SHUTDOWN = Shutdown()
