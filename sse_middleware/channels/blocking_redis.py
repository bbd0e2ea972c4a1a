"""Publish on channels in Redis from threads, and from processes that were forked.

A job runner may raise an exception at any point of a call: a time limit by a signal, or in a thread
from another one. The call cannot know then which answers are still to come. So a call shares
nothing with others while it lasts: it takes a publisher, with a connection and sequence numbers of
its own, out of the list of idle ones, and returns it when its answer is complete. A publisher that
is not returned is closed, and no lock, queue or connection can be left in a wrong state.
"""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis.exceptions import RedisClusterException, RedisError, ResponseError

from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import OutgoingEvent
from sse_middleware.channels.publish_batch import (
    PUBLISH_SECONDS,
    PublishBatch,
    PublisherSequence,
)
from sse_middleware.channels.redis_connection import pack_commands
from sse_middleware.errors import StoreError
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.circuit_breaker import Backoff
from sse_middleware.stores.redis.client import (
    READ_TIMEOUT_SECONDS,
    blocking_cluster,
    blocking_connection,
    check_database,
    close_blocking,
    is_of_cluster,
    timeouts_for,
)
from sse_middleware.stores.redis.keys import Keys
from sse_middleware.stores.redis.scripts import Command

# Without those of Python: a time limit is often a TimeoutError. redis-py wraps those of sockets.
_FAILURES: Final = (RedisError, RedisClusterException)
_EARLY: Final = 0.9
"""A socket waits for more than this part of its timeout."""


class BlockingRedisChannels:
    """Publish on channels in Redis from threads.

    There are as many connections as calls at the same time, and the next calls use them again.

    Args:
        url: of Redis. Its `socket_timeout` is the time in seconds in which Redis must answer; the
            default is 1.
        prefix: of all Redis keys.
        limits: how much of a channel is kept.
        observers: are notified of failures, in any thread.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "sse:",
        limits: Limits | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self._url = url
        self._observers = observers
        self._keys = Keys(prefix)
        self._limits = limits or Limits()
        self._idle: list[_ExclusivePublisher] = []

    def publish(self, event: OutgoingEvent) -> bool:
        """Append an event to its channel; return `False` if the channel has its key already."""
        idle = self._idle
        publisher = _take(idle) or self._new_publisher()
        try:
            outcome = publisher.publish(event)
        except BaseException:  # such as a time limit of a job, at any point
            publisher.disconnect()
            raise
        if idle is self._idle:
            idle.append(publisher)
        else:  # `close` was called
            publisher.disconnect()
        return outcome

    def close(self) -> None:
        """Close the connections that no call uses, and the others when their calls end.

        Another `publish` opens new ones.
        """
        idle, self._idle = self._idle, []
        while publisher := _take(idle):
            publisher.disconnect()

    def _new_publisher(self) -> "_ExclusivePublisher":
        return _ExclusivePublisher(self._url, self._keys, self._limits, self._observers)


class _ExclusivePublisher:
    """Publish one event at a time.

    Attributes:
        process: the process that uses the connection; a fork has a copy, which it must not use.
    """

    def __init__(self, url: str, keys: Keys, limits: Limits, observers: Sequence[Observer]) -> None:
        self.process = os.getpid()
        self._url = url
        self._keys = keys
        self._limits = limits
        self._observers = observers
        self._sequence = PublisherSequence()
        check_database(url)
        self._timeout = min(timeouts_for(url).read, PUBLISH_SECONDS)
        self._connection: Any = None
        self._connection_timeout = 0.0

    def publish(self, event: OutgoingEvent) -> bool:
        """Send an event until its outcome is known, or the time is over."""
        batch = PublishBatch([event], self._sequence, self._keys, self._limits)
        began, backoff, timeout = time.monotonic(), Backoff(), self._timeout
        while True:
            self._attempt(batch, timeout)
            self._report(batch, time.monotonic() - began)
            pause = backoff.next()
            timeout = min(self._timeout, began + PUBLISH_SECONDS - time.monotonic() - pause)
            if batch.is_settled or timeout <= 0:
                break
            time.sleep(pause)
        batch.fail_open()
        (outcome,) = batch.outcomes
        if isinstance(outcome, StoreError):
            raise outcome
        return bool(outcome)

    def disconnect(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            close_blocking(connection)

    def _attempt(self, batch: PublishBatch, timeout: float) -> None:
        """Send a batch once; Redis must answer within `timeout` seconds."""
        batch.last_failure, began = None, time.monotonic()
        try:
            while batch.take([self._execute(command, timeout) for command in batch.commands()]):
                pass
        except _FAILURES as exc:
            earliest = began + _EARLY * min(timeout, READ_TIMEOUT_SECONDS)
            first = _first_timeout(exc)
            if first is not None and time.monotonic() < earliest:
                raise first from None  # a time limit of the caller
            batch.last_failure = exc
        # After a failure, the address may lead to another server. A short timeout is not kept.
        if batch.last_failure is not None or self._connection_timeout < self._timeout:
            self.disconnect()

    def _report(self, batch: PublishBatch, seconds: float) -> None:
        for observer in self._observers:
            if batch.last_failure is None:
                observer.store_flushed(seconds)
            else:
                observer.store_failed("publish")

    def _execute(self, command: Command, timeout: float) -> Any:
        """Return the answer to a command, the exception of a refused one."""
        try:
            if is_of_cluster(self._url):
                return self._connected(timeout).execute_command(*command)
            self._connected(timeout).send_packed_command([pack_commands([command])])
            return self._connection.read_response(disable_decoding=True)
        except ResponseError as exc:
            return exc

    def _connected(self, timeout: float) -> Any:
        """Return the connection, a new one if Redis has closed it."""
        if self._connection is not None and _is_closed(self._connection):
            self.disconnect()
        if self._connection is None:
            connect = blocking_cluster if is_of_cluster(self._url) else blocking_connection
            self._connection = connect(self._url, timeout)
            self._connection_timeout = timeout
        return self._connection


def _take(idle: list[_ExclusivePublisher]) -> _ExclusivePublisher | None:
    """Remove the last idle publisher of this process, and return it."""
    with suppress(IndexError):  # another thread may take the last one
        while True:
            publisher = idle.pop()
            if publisher.process == os.getpid():
                return publisher
    return None


def _first_timeout(exc: BaseException) -> TimeoutError | None:
    """Return the timeout that redis-py has wrapped, `None` if it has wrapped none."""
    found, cause = None, exc.__context__
    while isinstance(cause, TimeoutError):
        found, cause = cause, cause.__context__
    return found


def _is_closed(connection: Any) -> bool:
    """Return whether a connection is closed; redis-py checks those of a cluster itself."""
    try:
        return hasattr(connection, "can_read") and bool(connection.can_read())
    except RedisError:
        return True
