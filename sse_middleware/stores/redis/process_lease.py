"""The lease of a process: a key that is renewed by a thread, and says that the process lives.

A thread, since a blocked event loop is not a dead one. The inbox lives as long as the lease.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from sse_middleware.stores.redis.client import ANSWER_SECONDS, FAILURES, close_blocking

logger = logging.getLogger("sse_middleware")


class ProcessLease:
    """Hold a lease, from now on until it is given back or its event loop is closed.

    Args:
        connect: makes a client for a thread; that of a cluster waits for an answer.
        lease: the key that says so.
        inbox: the key of the inbox.
        append: makes the command that adds to an inbox that may be new.
        seconds: within which time a process that has died is known to be dead.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        lease: str,
        inbox: str,
        append: Callable[..., tuple[Any, ...]],
        seconds: float,
    ) -> None:
        self._connect = connect
        self._client: Any = None
        self._lease = lease
        self._inbox = inbox
        self._append = append
        self._milliseconds = lease_milliseconds(seconds)
        self._pause = seconds / 8
        self._loop = asyncio.get_running_loop()
        self._poked = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sse_middleware lease", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Renew it now, for Redis may have forgotten."""
        self._poked.set()

    async def stop(self) -> None:
        """Give it back."""
        self._stopped = True
        self._poked.set()
        await self._loop.run_in_executor(None, self._thread.join, ANSWER_SECONDS)

    def _run(self) -> None:
        while not (self._stopped or self._loop.is_closed()):
            self._poked.clear()
            self._try(self._renew)
            self._poked.wait(self._pause)
        if self._client is not None:
            self._try(self._give_back)
            close_blocking(self._client)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            if self._client is None:
                self._client = self._connect()
            call()
        except FAILURES as exc:
            logger.debug("the lease: %s", type(exc).__name__)
        except Exception:
            logger.exception("the lease goes on, whatever this was")

    def _renew(self) -> None:
        # PEXPIRE, since a Redis that is full refuses SET.
        with self._client.pipeline(transaction=False) as pipe:
            pipe.pexpire(self._lease, self._milliseconds)
            pipe.pexpire(self._inbox, 4 * self._milliseconds)
            if all(pipe.execute()):
                return
        with self._client.pipeline(transaction=False) as pipe:
            pipe.set(self._lease, 1, px=self._milliseconds)
            pipe.execute_command(
                *self._append(self._inbox, 4 * self._milliseconds, "*", "w", "hello")
            )
            pipe.execute()

    def _give_back(self) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            pipe.delete(self._lease)
            pipe.delete(self._inbox)
            pipe.execute()


def lease_milliseconds(seconds: float) -> int:
    """Return how long a lease is good for; the rest of its time is for doubts."""
    return int(seconds * 600)
