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
_DUPLICATE_SIGNAL_SECONDS = 1.0
"""Ctrl-C reaches a worker twice: from the terminal, and from its parent, which has got it too."""
_POLL_SECONDS = 0.02
_HYPERCORN_POLL_SECONDS = 0.5
_HYPERCORN_MAIN = "worker_serve"
"""What hypercorn's main task runs."""


class Shutdown:
    """Tell the streams of all loops in the process that it ends.

    Attributes:
        begun: whether any loop's server has ever begun to end.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.drain_for = OncePerKey[asyncio.AbstractEventLoop, Drain](self._register_loop)
        self._signalled_at: float | None = None

    def on_signal(self) -> None:
        """Begin; a second signal, later than by the way of the first, ends all now."""
        now = time.monotonic()
        first = self._signalled_at is None
        if self._signalled_at is None:
            self._signalled_at = now
        if first or now - self._signalled_at > _DUPLICATE_SIGNAL_SECONDS:
            self._broadcast(Drain.begin if first else Drain.force)

    async def drain(self) -> None:
        """Let go or end all streams of the process, in `SSE_DRAIN_SECONDS`, and wait for that.

        For servers whose signals we do not see, such as one that runs in a thread. It may be called
        in any event loop, before the server is told to end; new streams are refused from then on.
        """
        self.drain_for(asyncio.get_running_loop())
        self._broadcast(Drain.begin)
        # Events are of one loop each, so it is asked.
        while any(  # noqa: ASYNC110
            len(drain) or not drain.is_draining
            for loop, drain in self.drain_for.items()
            if loop.is_running()
        ):
            await asyncio.sleep(_POLL_SECONDS)

    def _broadcast(self, action: Callable[[Drain], None]) -> None:
        self.is_draining = True
        for loop, drain in self.drain_for.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(action, drain)

    def _register_loop(self, loop: asyncio.AbstractEventLoop) -> Drain:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                _chain_handler(number, self)
        drain = Drain()
        for task in asyncio.all_tasks(loop):
            if _is_hypercorn_main(task):
                loop.call_later(_HYPERCORN_POLL_SECONDS, self._poll_hypercorn, loop, task, drain)
        return drain

    def _poll_hypercorn(
        self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], drain: Drain
    ) -> None:
        """Begin to drain where hypercorn, which tells nobody, waits for its connections.

        From Python 3.12.1 on it does so for ever: "wait until ... all active connections have
        finished" (https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.Server).
        """
        if any(code.co_name == "wait_closed" for code in _awaited_code(task)):
            self.is_draining = True
            drain.begin()
        elif not task.done():
            loop.call_later(_HYPERCORN_POLL_SECONDS, self._poll_hypercorn, loop, task, drain)


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


def _chain_handler(number: int, shutdown: Shutdown) -> None:
    """Hear of a signal, where a server handles it: else it ends the process, or its main task."""
    handler = signal.getsignal(number)
    if not callable(handler) or handler is signal.default_int_handler:
        return
    function = getattr(handler, "func", handler)  # asyncio's own is partial
    is_asyncios = isinstance(getattr(function, "__self__", None), asyncio.Runner)
    if not (is_asyncios or isinstance(handler, ChainedSignalHandler)):
        signal.signal(number, ChainedSignalHandler(shutdown, handler))


def _is_hypercorn_main(task: asyncio.Task[Any]) -> bool:
    return any(
        code.co_name == _HYPERCORN_MAIN and "hypercorn" in code.co_filename
        for code in _awaited_code(task)
    )


def _awaited_code(task: asyncio.Task[Any]) -> Iterator[CodeType]:
    """Return the code of the coroutines in which a task is suspended, outermost first.

    An object without one of the attributes ends the search.
    """
    get_coro = getattr(task, "get_coro", None)
    awaited: Any = None if get_coro is None else get_coro()
    while awaited is not None:
        code = getattr(awaited, "cr_code", None)
        if isinstance(code, CodeType):
            yield code
        awaited = getattr(awaited, "cr_await", None)


SHUTDOWN = Shutdown()
