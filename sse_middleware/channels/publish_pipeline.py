"""Publish the events of one event loop on channels in Redis.

One batch is in flight at a time, and the events that are published meanwhile form the next one. In
the usual case a batch is sent in the iteration of the event loop in which it was published, and
settled in the iteration in which the answer arrives, without a task. After a failure, a task
repeats the batch. Each call has a deadline of its own; after it, its event is not sent again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from redis.asyncio.cluster import RedisCluster

from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import OutgoingEvent
from sse_middleware.channels.publish_batch import (
    PUBLISH_SECONDS,
    PublishBatch,
    PublisherSequence,
    batch_length,
    unknown_outcome,
)
from sse_middleware.channels.redis_connection import RedisConnection
from sse_middleware.errors import StoreError
from sse_middleware.stores.circuit_breaker import Backoff
from sse_middleware.stores.redis.client import FAILURES
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.keys import Keys

_Result = bool | StoreError | None


class _Call(NamedTuple):
    """A call of `publish`; it ends at its deadline at the latest."""

    event: OutgoingEvent
    outcome: "asyncio.Future[bool]"
    deadline: float


class PublishPipeline:
    """Publish events in batches.

    Args:
        connect: makes a connection that calls a function with each reply.
        cluster: the cluster, if there is one; redis-py finds the node of each command.
        keys: builds keys.
        limits: how much of a channel is kept.
        client: receives failures and successes; its write timeout bounds an attempt.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[Any], None]], RedisConnection],
        cluster: RedisCluster | None,
        keys: Keys,
        limits: Limits,
        client: CommandClient,
    ) -> None:
        self._connect = connect
        self._cluster = cluster
        self._keys = keys
        self._limits = limits
        self._client = client
        self._timeout = min(client.timeouts.write, PUBLISH_SECONDS)
        self._sequence = PublisherSequence()
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Call] = deque()  # in the order of their deadlines
        self._in_flight: list[_Call] = []
        self._batch = PublishBatch((), self._sequence, keys, limits)
        self._began = 0.0
        self._connection: RedisConnection | None = None
        self._answers: list[Any] = []
        self._missing = 0  # the number of answers to come
        self._expects_answers = False  # without a task
        self._answered: asyncio.Future[None] | None = None  # the task waits for it
        self._timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._emptied: asyncio.Future[None] | None = None

    def publish(self, event: OutgoingEvent) -> "asyncio.Future[bool]":
        """Send an event, and return its outcome."""
        outcome: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append(_Call(event, outcome, time.monotonic() + PUBLISH_SECONDS))
        if self._expiry is None:
            self._expiry = self._loop.call_later(PUBLISH_SECONDS, self._expire)
        if not self._in_flight:
            self._next_batch()
        return outcome

    async def close(self) -> None:
        """Send all events, within the deadlines of their calls, and close the connection."""
        if self._in_flight:
            self._emptied = self._emptied or self._loop.create_future()
            await asyncio.shield(self._emptied)
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        await self._disconnect()

    def _next_batch(self) -> None:
        """Send the waiting events, up to the bounds of a batch."""
        number = batch_length(call.event for call in self._waiting)
        self._in_flight = [self._waiting.popleft() for _ in range(number)]
        events = [call.event for call in self._in_flight]
        self._batch = PublishBatch(events, self._sequence, self._keys, self._limits)
        self._began = time.monotonic()
        if self._connection is not None and self._connection.is_open:
            self._expects_answers = True
            self._send(self._connection)
            if self._timer is None:
                self._timer = self._loop.call_later(self._timeout, self._check_timeout)
        else:
            self._start_retry()

    def _send(self, connection: RedisConnection) -> None:
        self._answers = []
        self._missing = self._batch.answers
        connection.send(self._batch.packed())

    def _on_reply(self, answer: Any) -> None:
        self._answers.append(answer)
        self._missing -= 1
        if self._missing:
            return
        if self._answered is not None:
            self._answered.set_result(None)
        elif self._expects_answers:
            self._expects_answers = False
            self._batch.take(self._answers[1:])
            if self._batch.is_settled:
                self._settle()
            else:
                self._start_retry()

    def _check_timeout(self) -> None:
        """Abort a connection without answers; one timer serves many batches."""
        self._timer = None
        if not self._expects_answers or self._connection is None:
            return
        remaining = self._began + self._timeout - time.monotonic()
        if remaining > 0:
            self._timer = self._loop.call_later(remaining, self._check_timeout)
        else:
            self._connection.abort(TimeoutError("Redis has not answered in time"))

    def _expire(self) -> None:
        """Fail the calls whose time is over; one timer serves many calls."""
        now, failure = time.monotonic(), self._batch.last_failure
        for call in self._in_flight:
            if call.deadline <= now:
                _set_outcome(call.outcome, unknown_outcome(failure))
        while self._waiting and self._waiting[0].deadline <= now:
            _set_outcome(self._waiting.popleft().outcome, unknown_outcome(failure))
        remaining = [call.deadline for call in self._in_flight if call.deadline > now]
        remaining += [call.deadline for call in islice(self._waiting, 1)]
        self._expiry = None
        if remaining:
            self._expiry = self._loop.call_later(remaining[0] - now, self._expire)

    def _on_lost(self, connection: RedisConnection, lost: "asyncio.Future[BaseException]") -> None:
        """Repeat the batch on another connection."""
        if self._expects_answers and connection is self._connection:
            self._expects_answers = False
            self._client.failed("publish", lost.result())
            self._start_retry()

    def _start_retry(self) -> None:
        self._task = self._loop.create_task(self._retry())

    def _settle(self) -> None:
        """Set the outcomes, and send the next batch."""
        if self._batch.last_failure is None:
            self._client.flushed(time.monotonic() - self._began)
        else:
            self._client.failed("publish", self._batch.last_failure)
        self._batch.fail_open()
        settled, self._in_flight = self._in_flight, []
        for call, result in zip(settled, self._batch.outcomes, strict=True):
            _set_outcome(call.outcome, result)
        if self._waiting:
            self._next_batch()
        elif self._emptied is not None:
            self._emptied.set_result(None)
            self._emptied = None

    async def _retry(self) -> None:
        """Send the batch until each outcome is known, or the time of its calls is over."""
        batch, backoff = self._batch, Backoff()
        try:
            while True:
                await self._try(batch)
                if self._is_over(batch):
                    break
                await asyncio.sleep(min(backoff.next(), self._seconds_left()))
                if self._is_over(batch):
                    break
                if batch.last_failure is not None:
                    self._client.failed("publish", batch.last_failure)
        except asyncio.CancelledError:
            await self._disconnect()  # a late answer must not settle another batch
            for call in (*self._in_flight, *self._waiting):
                _set_outcome(call.outcome, StoreError("publish: the event loop is closing"))
            self._waiting.clear()
            raise
        finally:
            self._task = None
            self._settle()

    async def _try(self, batch: PublishBatch) -> None:
        """Send the batch once."""
        if batch.last_failure is not None:
            await self._disconnect()  # the address may lead to another server by now
        batch.last_failure = None
        try:
            async with asyncio.timeout(min(self._timeout, self._seconds_left())):
                while batch.take(await self._attempt()):
                    pass
        except FAILURES as exc:
            batch.last_failure = exc
            await self._disconnect()

    def _is_over(self, batch: PublishBatch) -> bool:
        """Return whether no call waits for the batch; events of calls that ended are left out."""
        now = time.monotonic()
        for index, call in enumerate(self._in_flight):
            if call.outcome.done() or call.deadline <= now:
                batch.abandon(index)
        return batch.is_settled

    def _seconds_left(self) -> float:
        """Return the time until all calls of the batch have ended."""
        return max(0.0, self._in_flight[-1].deadline - time.monotonic())

    async def _attempt(self) -> list[Any]:
        if self._cluster is not None:
            return await asyncio.gather(
                *(self._cluster.execute_command(*command) for command in self._batch.commands()),
                return_exceptions=True,
            )
        connection = await self._open_connection()
        self._answered = self._loop.create_future()
        try:
            self._send(connection)
            await asyncio.wait(
                (self._answered, connection.lost), return_when=asyncio.FIRST_COMPLETED
            )
            if not self._answered.done():
                raise connection.lost.result()
        finally:
            self._answered = None
        return self._answers[1:]

    async def _open_connection(self) -> RedisConnection:
        if self._connection is None or not self._connection.is_open:
            await self._disconnect()
            self._connection = self._connect(self._on_reply)
            self._connection.lost.add_done_callback(partial(self._on_lost, self._connection))
            await self._connection.open()
        return self._connection

    async def _disconnect(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _set_outcome(outcome: "asyncio.Future[bool]", result: _Result) -> None:
    if outcome.done():
        return
    if isinstance(result, StoreError):
        outcome.set_exception(result)
    else:
        outcome.set_result(bool(result))
