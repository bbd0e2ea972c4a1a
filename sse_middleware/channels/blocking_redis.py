"""Publish on channels in Redis from threads, and from processes that were forked."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from redis import RedisCluster

from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import OutgoingEvent
from sse_middleware.channels.publish_batch import (
    PUBLISH_SECONDS,
    PublishBatch,
    PublisherSequence,
    batch_length,
)
from sse_middleware.errors import StoreError
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.circuit_breaker import Backoff
from sse_middleware.stores.redis.client import FAILURES, blocking_client, close_blocking
from sse_middleware.stores.redis.keys import Keys
from sse_middleware.stores.redis.scripts import Command

logger = logging.getLogger("sse_middleware")


class BlockingRedisChannels:
    """Publish on channels in Redis from threads.

    Threads that publish at the same time share a connection and a batch.

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
        self._init_process()

    def _init_process(self) -> None:
        """Create the state of this process: a fork copies that of its parent, with locks held."""
        self._process = os.getpid()
        self._sequence = PublisherSequence()
        self._waiting: deque[_Waiting] = deque()
        self._queueing = threading.Lock()
        self._sending = threading.Lock()
        self._client: Any = None

    def publish(self, event: OutgoingEvent) -> bool:
        """Append an event to its channel; return `False` if the channel has its key already."""
        if self._process != os.getpid():
            self._init_process()
        mine = _Waiting(event)
        with self._queueing:
            self._waiting.append(mine)
        try:
            with self._sending:  # its holder also sends the events of the threads that wait for it
                while mine.outcome is None:
                    self._send(self._next_batch())
        except BaseException:  # such as a time limit of a job, at any point
            with self._queueing:
                if mine in self._waiting:
                    self._waiting.remove(mine)
            raise
        if isinstance(mine.outcome, StoreError):
            raise mine.outcome
        return mine.outcome

    def close(self) -> None:
        """Close the connections; another `publish` opens new ones."""
        if self._process != os.getpid():
            self._init_process()
        with self._sending:
            if self._client is not None:
                close_blocking(self._client)
                self._client = None

    def _next_batch(self) -> list["_Waiting"]:
        with self._queueing:
            number = batch_length(waiting.event for waiting in self._waiting)
            return [self._waiting.popleft() for _ in range(number)]

    def _send(self, in_flight: Sequence["_Waiting"]) -> None:
        events = [waiting.event for waiting in in_flight]
        batch = PublishBatch(events, self._sequence, self._keys, self._limits)
        try:
            self._retry(batch)
        finally:
            batch.fail_open()
            for waiting, outcome in zip(in_flight, batch.outcomes, strict=True):
                waiting.outcome = outcome

    def _retry(self, batch: PublishBatch) -> None:
        """Send a batch until each outcome is known, or the time is over."""
        began, backoff = time.monotonic(), Backoff()
        while True:
            batch.last_failure = None
            try:
                while batch.take(self._attempt(batch.commands())):
                    pass
            except FAILURES as exc:
                batch.last_failure = exc
            for observer in self._observers:
                if batch.last_failure is None:
                    observer.store_flushed(time.monotonic() - began)
                else:
                    observer.store_failed("publish")
            if batch.is_settled or time.monotonic() > began + PUBLISH_SECONDS:
                return
            logger.debug("publish: %s", type(batch.last_failure).__name__)
            time.sleep(backoff.next())

    def _attempt(self, commands: Sequence[Command]) -> list[Any]:
        if self._client is None:
            self._client = blocking_client(self._url, None)
        if isinstance(self._client, RedisCluster):
            return [self._execute(command) for command in commands]
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return list(pipe.execute(raise_on_error=False))

    def _execute(self, command: Command) -> Any:
        try:
            return self._client.execute_command(*command)
        except FAILURES as exc:
            return exc


class _Waiting:
    """An event that a thread waits for."""

    __slots__ = ("event", "outcome")

    def __init__(self, event: OutgoingEvent) -> None:
        self.event = event
        self.outcome: bool | StoreError | None = None
