"""Notice that the server shuts down, and drain the streams of all event loops of the process.

Theory of operation. A server that shuts down waits for its open connections before it sends
`lifespan.shutdown`, so the drain has to begin earlier. There are three ways:

- Signals. A handler is installed in front of the server's own for SIGTERM and SIGINT. It starts the
  drain and then calls the server's handler. It has the `__self__` of that handler, by which
  sse-starlette finds the server. No handler is installed if the default one is active, because it
  ends the process, and none in front of `asyncio.Runner`'s, which cancels the main task. The one
  exception is a worker of hypercorn, which has the default handler: as soon as one worker has
  ended, the parent terminates the others, whose streams would be cut.
- `drain()`. The app calls it if the server gets no signal, for example in a thread.
- Some servers stop without a signal: hypercorn stops its workers, and uvicorn and gunicorn end
  after their maximum of requests. The main task of the server is recognised by the name of a
  coroutine, and checked twice a second: when it waits in a coroutine of its shutdown, the drain
  begins. If a server renames these coroutines, only this way is lost: the drain then does not
  begin by itself without a signal, and `drain()` still works. Of several servers in one loop, one
  that ends alone starts no drain.

Signals and main tasks are watched only if a drain can end something: from the lifespan on if a
setting shows that, and from the first stream on that a drain would end. Other code may install its
handlers later; a second server in the same loop does. So the handlers are checked again when
another server starts, and when streams open, at most once a second. Python installs handlers
in the main thread only. If a stream opens in another one, an event loop of the main thread does it.
A server that has received its signal before the first stream has opened is recognised by its
attribute `should_exit`, which uvicorn has.

A second signal for the same server ends all streams at once. Ctrl-C can reach a worker twice, from
the terminal and from its parent, so a signal counts as the second one only after a second. uvicorn
raises its signal again when it has ended, for the handler before its own: that is the first signal
for another server. Therefore the times of the signals are kept for each handler and each loop.

The streams of a loop are drained in that loop, by `call_soon_threadsafe`. There is one `Shutdown`
per process, because a signal is sent to the process and not to a loop. The drain of a loop is over
when a server starts there after all others have ended.
"""

import asyncio
import multiprocessing
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any

from sse_middleware._once import OncePerKey
from sse_middleware.stream.drain import Drain

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_DUPLICATE_SIGNAL_SECONDS = 1.0
"""A repeated signal within this time is the same Ctrl-C, sent by the parent process."""
_POLL_SECONDS = 0.02
_SERVER_POLL_SECONDS = 0.5
_SERVER_ENDS_SECONDS = 10.0
"""The time for the end of a worker itself, with its lifespan, when its streams have ended."""
_SERVERS = {
    "hypercorn": ("worker_serve", "worker_serve", {"wait_closed", "wait_for"}),
    "uvicorn": ("serve", "_serve", {"shutdown"}),
    "gunicorn": ("_serve", "_serve", {"_shutdown"}),
}
"""By package, the names of a server's main coroutine, and of the coroutine that runs its shutdown
and of those that it awaits there itself. hypercorn waits for its connections in the first one from
Python 3.12.1 on and in the second one, with a limit, before."""


SignalTimes = weakref.WeakKeyDictionary[Drain, float]
"""For each loop, the time of the first signal that a server has received."""


class Shutdown:
    """Start the drain of all loops in the process.

    Attributes:
        is_draining: whether the drain of any loop has begun.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.drain_for = OncePerKey[asyncio.AbstractEventLoop, Drain](lambda _: Drain(self.watch))
        self._is_watching = False
        self._main_loop: weakref.ref[asyncio.AbstractEventLoop] | None = None
        self._searched = weakref.WeakSet[asyncio.AbstractEventLoop]()
        self._is_worker_of_hypercorn = False

    @contextmanager
    def serving(self, *, can_end_streams: bool) -> Iterator[None]:
        """Register the server of the running loop for the time of its lifespan.

        Args:
            can_end_streams: whether it is known already that a drain can end something.
        """
        loop = asyncio.get_running_loop()
        drain = self.drain_for(loop)
        if drain.is_draining and not (drain.servers or len(drain)):
            drain.is_draining = False
            self.is_draining = any(other.is_draining for _, other in self.drain_for.items())
        if _is_in_main_thread():
            self._main_loop = weakref.ref(loop)
        self._searched.discard(loop)
        drain.servers += 1
        try:
            if can_end_streams or self._is_watching:
                self.watch()
            yield
        finally:
            drain.servers -= 1

    def watch(self) -> None:
        """Notice a shutdown from now on, because a drain can end something in the running loop."""
        self._is_watching = True
        loop = asyncio.get_running_loop()
        if loop not in self._searched:
            self._searched.add(loop)
            self._find_server(loop)
        if _is_in_main_thread():
            self._main_loop = weakref.ref(loop)
            self._install_handlers()
            return
        main_loop = None if self._main_loop is None else self._main_loop()
        if main_loop is not None:
            _call_soon(main_loop, self._install_handlers)

    def on_signal(self, signalled_at: SignalTimes) -> None:
        """Start the drain; end the streams of loops for which it is a second signal.

        Args:
            signalled_at: the times of the first signal that the server has received.
        """
        now = time.monotonic()
        self.is_draining = True
        for loop, drain in self.drain_for.items():
            first_at = signalled_at.setdefault(drain, now)
            if first_at == now:
                _call_soon(loop, drain.begin)
            elif now - first_at > _DUPLICATE_SIGNAL_SECONDS:
                _call_soon(loop, drain.force)

    async def drain(self) -> None:
        """Disconnect or end all streams of the process in `SSE_DRAIN_SECONDS`; return after that.

        For servers without observable signals, such as one that runs in a thread. It can be called
        in any event loop, before the server is stopped; new streams are rejected from then on.
        """
        self.is_draining = True
        self.drain_for(asyncio.get_running_loop())
        begun = set[Drain]()
        # Polled, because an `asyncio.Event` belongs to one loop, and loops may be added meanwhile.
        while drains := [
            (loop, drain)
            for loop, drain in self.drain_for.items()
            if loop.is_running() and (len(drain) or not drain.is_draining)
        ]:
            for loop, drain in drains:
                if drain not in begun:
                    begun.add(drain)
                    _call_soon(loop, drain.begin)
            await asyncio.sleep(_POLL_SECONDS)

    def _install_handlers(self) -> None:
        """Install our handlers in front of those of a server; other default handlers stay."""
        signalled_at: SignalTimes = weakref.WeakKeyDictionary()
        is_exiting = False
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler is signal.SIG_DFL and self._is_worker_of_hypercorn:
                handler = partial(_end_after_drain, self)
            if callable(handler) and _is_of_server(handler):
                with suppress(ValueError):  # in a sub-interpreter
                    signal.signal(number, ChainedSignalHandler(self, handler, signalled_at))
                server = getattr(handler, "__self__", None)
                is_exiting = is_exiting or getattr(server, "should_exit", False) is True
        if is_exiting:
            self.on_signal(signalled_at)

    def _find_server(self, loop: asyncio.AbstractEventLoop) -> None:
        """Poll the servers whose main tasks run in a loop."""
        for task in asyncio.all_tasks(loop):
            server = _server_of(task)
            if server:
                poll = partial(self._poll_server, loop, task, server)
                loop.call_later(_SERVER_POLL_SECONDS, poll)
            if server == "hypercorn" and multiprocessing.parent_process() is not None:
                self._is_worker_of_hypercorn = True

    def _poll_server(
        self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], server: str
    ) -> None:
        """Start the drain if the server waits for its connections.

        From Python 3.12.1 on hypercorn would wait forever: "wait until ... all active connections
        have finished" (https://docs.python.org/3/library/asyncio-eventloop.html#asyncio.Server).
        """
        if _is_shutting_down(server, task) and not _has_other_server(loop, task):
            self.is_draining = True
            self.drain_for(loop).begin()
        elif not task.done():
            poll = partial(self._poll_server, loop, task, server)
            loop.call_later(_SERVER_POLL_SECONDS, poll)


class ChainedSignalHandler:
    """A signal handler that runs before another one.

    It has the `__self__` of the other handler, by which sse-starlette finds the server.
    """

    def __init__(
        self,
        shutdown: Shutdown,
        handler: Callable[[int, FrameType | None], Any],
        signalled_at: SignalTimes,
    ) -> None:
        self._shutdown = shutdown
        self._handler = handler
        self._signalled_at = signalled_at
        if hasattr(handler, "__self__"):
            self.__self__ = handler.__self__

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal, then call the handler that was installed before."""
        try:
            self._shutdown.on_signal(self._signalled_at)
        finally:
            self._handler(number, frame)


def _end_after_drain(shutdown: Shutdown, number: int, _: FrameType | None) -> None:
    """End the process as the default handler does, but after its streams, and the server itself.

    A server that ends by itself meanwhile also ends the loop, and so the timers.
    """

    def poll(loop: asyncio.AbstractEventLoop) -> None:
        if any(len(drain) for _, drain in shutdown.drain_for.items()):
            loop.call_later(_SERVER_POLL_SECONDS, poll, loop)
        else:
            loop.call_later(_SERVER_ENDS_SECONDS, end)

    def end() -> None:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    for loop in [found for found, _ in shutdown.drain_for.items()]:
        _call_soon(loop, partial(poll, loop))


def _is_of_server(handler: Callable[..., Any]) -> bool:
    """Return whether a handler is neither ours nor one of Python's own that end the program."""
    function = getattr(handler, "func", handler)  # asyncio's own is partial
    is_runner_handler = isinstance(getattr(function, "__self__", None), asyncio.Runner)
    is_default = handler is signal.default_int_handler or is_runner_handler
    return not (is_default or isinstance(handler, ChainedSignalHandler))


def _is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Call a function in a loop, not before the code that runs there now has returned."""
    with suppress(RuntimeError):  # it is closed
        loop.call_soon_threadsafe(call)


def _server_of(task: asyncio.Task[Any]) -> str:
    """Return the package of the server whose main task it is, `""` if it is none."""
    for code in _awaited_code(task):
        folders = PurePath(code.co_filename).parts
        for package, (main, _, _) in _SERVERS.items():
            if code.co_name == main and package in folders:
                return package
    return ""


def _has_other_server(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> bool:
    """Return whether another server serves in a loop; an app may have several lifespans."""
    others = [(_server_of(other), other) for other in asyncio.all_tasks(loop) - {task}]
    return any(name and not _is_shutting_down(name, other) for name, other in others)


def _is_shutting_down(server: str, task: asyncio.Task[Any]) -> bool:
    """Return whether the main task of a server waits in its shutdown."""
    _, runs, waits = _SERVERS[server]
    names = [code.co_name for code in _awaited_code(task)]
    return any(outer == runs and inner in waits for outer, inner in pairwise(names))


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
