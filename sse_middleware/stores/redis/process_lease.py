"""The lease of a process: a key that exists while the process lives.

A thread renews it, because a blocked event loop does not mean a dead process. The inbox of the
process lives as long as the lease.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from sse_middleware.stores.redis.client import FAILURES, close_blocking
from sse_middleware.stores.redis.scripts import append

logger = logging.getLogger("sse_middleware")


class ProcessLease:
    """Hold a lease until `stop` is called or the event loop is closed.

    Args:
        connect: returns a client for a thread; that of a cluster blocks until it has connected.
        lease: the key of the lease.
        inbox: the key of the inbox.
        first_id: returns the id of the first message of a new inbox.
        seconds: within this time other processes notice that this one has died.
        stop_timeout: how long `stop` waits for the thread, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        lease: str,
        inbox: str,
        first_id: Callable[[], bytes],
        *,
        seconds: float,
        stop_timeout: float,
    ) -> None:
        self._connect = connect
        self._client: Any = None
        self._lease = lease
        self._inbox = inbox
        self._first_id = first_id
        self._milliseconds = lease_milliseconds(seconds)
        self._renewal_seconds = seconds / 8
        self._stop_timeout = stop_timeout
        self._loop = asyncio.get_running_loop()
        self._is_due = threading.Event()
        self._stopped = False
        self._is_held = False
        self._thread = threading.Thread(target=self._run, name="sse_middleware lease", daemon=True)
        self._thread.start()

    def renew_now(self) -> None:
        """Renew the lease now; Redis may have lost it."""
        self._is_due.set()

    async def stop(self) -> None:
        """Give the lease back."""
        self._stopped = True
        self._is_due.set()
        await self._loop.run_in_executor(None, self._thread.join, self._stop_timeout)

    def _run(self) -> None:
        while not (self._stopped or self._loop.is_closed()):
            self._is_due.clear()
            self._try(self._renew)
            self._is_due.wait(self._renewal_seconds)
        if self._is_held:
            self._try(self._give_back)
        self._disconnect()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            if self._client is None:
                self._client = self._connect()
            action()
        except FAILURES as exc:
            logger.debug("lease: %s", type(exc).__name__)
            self._disconnect()  # the address may lead to another server by now
        except Exception:
            logger.exception("The lease of this process was not renewed. It is tried again.")

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            close_blocking(client)

    def _renew(self) -> None:
        self._is_held = True  # also if the answer is lost
        # PEXPIRE, because a Redis that is full refuses SET.
        with self._client.pipeline(transaction=False) as pipe:
            pipe.pexpire(self._lease, self._milliseconds)
            pipe.pexpire(self._inbox, 4 * self._milliseconds)
            if all(pipe.execute()):
                return
        with self._client.pipeline(transaction=False) as pipe:
            pipe.set(self._lease, 1, px=self._milliseconds)
            pipe.execute_command(
                *append(self._inbox, str(4 * self._milliseconds), self._first_id(), "w", "hello")
            )
            pipe.execute()

    def _give_back(self) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            pipe.delete(self._lease)
            pipe.delete(self._inbox)
            pipe.execute()


def lease_milliseconds(seconds: float) -> int:
    """Return the expiry of a lease; the rest of the time is for readers that check it again."""
    return int(seconds * 600)
