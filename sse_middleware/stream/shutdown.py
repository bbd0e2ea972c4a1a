"""Notice that the server shuts down, and drain the streams of all event loops of the process.

Theory of operation. A server that shuts down waits for its open connections before it sends
`lifespan.shutdown`, so the drain has to begin earlier. There are three ways:

- Signals. When the first stream of a loop opens in the main thread, or the lifespan begins, a
  handler is installed in front of the server's own for SIGTERM and SIGINT. It starts the drain and
  then calls the server's handler. It has the `__self__` of that handler, by which sse-starlette
  finds the server. No handler is installed if the default one is active, because it ends the
  process, and none in front of `asyncio.Runner`'s, which cancels the main task.
- `drain()`. The app calls it if the server gets no signal, for example in a thread.
- hypercorn stops its workers without a signal. The main task of a worker is recognised by the name
  of a coroutine, and checked twice a second: when it waits in `asyncio.Server.wait_closed`, the
  drain begins. If hypercorn or asyncio rename these coroutines, only this way is lost: the drain
  then does not begin by itself under hypercorn, and `drain()` still works.

A second signal ends all streams at once. Ctrl-C can reach a worker twice, from the terminal and
from its parent, so a signal counts as the second one only after a second.

The streams of a loop are drained in that loop, by `call_soon_threadsafe`. There is one `Shutdown`
per process, because a signal is sent to the process and not to a loop.
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
"""A repeated signal within this time is the same Ctrl-C, sent by the parent process."""
_POLL_SECONDS = 0.02
_HYPERCORN_POLL_SECONDS = 0.5
_HYPERCORN_MAIN = "worker_serve"
"""The name of hypercorn's main coroutine."""


class Shutdown:
    """Start the drain of all loops in the process.

    Attributes:
        is_draining: whether the drain of any loop has begun.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.drain_for = OncePerKey[asyncio.AbstractEventLoop, Drain](self._register_loop)
        self._signalled_at: float | None = None

    def on_signal(self) -> None:
        """Start the drain; end all streams if it is a second signal."""
        now = time.monotonic()
        first = self._signalled_at is None
        if self._signalled_at is None:
            self._signalled_at = now
        if first or now - self._signalled_at > _DUPLICATE_SIGNAL_SECONDS:
            self._broadcast(Drain.begin if first else Drain.force)

    async def drain(self) -> None:
        """Disconnect or end all streams of the process in `SSE_DRAIN_SECONDS`; return after that.

        For servers without observable signals, such as one that runs in a thread. It can be called
        in any event loop, before the server is stopped; new streams are rejected from then on.
        """
        self.drain_for(asyncio.get_running_loop())
        self._broadcast(Drain.begin)
        # Polled, because an `asyncio.Event` belongs to one loop.
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
        """Start the drain if hypercorn waits for its connections.

        From Python 3.12.1 on it would wait forever: "wait until ... all active connections have
        finished" (https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.Server).
        """
        if any(code.co_name == "wait_closed" for code in _awaited_code(task)):
            self.is_draining = True
            drain.begin()
        elif not task.done():
            loop.call_later(_HYPERCORN_POLL_SECONDS, self._poll_hypercorn, loop, task, drain)


class ChainedSignalHandler:
    """A signal handler that runs before another one.

    It has the `__self__` of the other handler, by which sse-starlette finds the server.
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
    """Install our handler if a server handles the signal; the default handlers stay."""
    handler = signal.getsignal(number)
    if not callable(handler) or handler is signal.default_int_handler:
        return
    function = getattr(handler, "func", handler)  # asyncio's own is partial
    is_runner_handler = isinstance(getattr(function, "__self__", None), asyncio.Runner)
    if not (is_runner_handler or isinstance(handler, ChainedSignalHandler)):
        signal.signal(number, ChainedSignalHandler(shutdown, handler))


def _is_hypercorn_main(task: asyncio.Task[Any]) -> bool:
    return any(
        code.co_name == _HYPERCORN_MAIN and "hypercorn" in code.co_filename
        for code in _awaited_code(task)
    )


def _awaited_code(task: asyncio.Task[Any]) -> Iterator[CodeType]:
    """Return the code of the coroutines in which a task is suspended, outermost first.

    An object without one of the attributes ends the search, and so does a coroutine that runs:
    CPython 3.11 can crash if it is asked for the `cr_await` of that.
    """
    get_coro = getattr(task, "get_coro", None)
    awaited: Any = None if get_coro is None else get_coro()
    while awaited is not None:
        code = getattr(awaited, "cr_code", None)
        if isinstance(code, CodeType):
            yield code
        if getattr(awaited, "cr_running", False):
            return
        awaited = getattr(awaited, "cr_await", None)


SHUTDOWN = Shutdown()
