"""What an event loop publishes on channels in Redis, and waits for until each outcome is known.

One lot is under way at a time, and what comes meanwhile is the next one. In the usual case a lot is
sent in the turn of the loop in which it was published and settled in the one in which the answer
has come, without a task; whatever goes wrong takes one, which tries again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from redis.asyncio.cluster import RedisCluster

from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import OutgoingEvent
from sse_middleware.channels.publish_batch import (
    PATIENCE_SECONDS,
    ChannelKeys,
    PublishBatch,
    PublisherSequence,
    first_of,
    pauses,
)
from sse_middleware.channels.redis_connection import RedisConnection
from sse_middleware.errors import StoreError
from sse_middleware.stores.redis.client import ANSWER_SECONDS, FAILURES
from sse_middleware.stores.redis.commands import CommandClient

_Result = bool | StoreError | None
_Waiting = tuple[OutgoingEvent, "asyncio.Future[bool]"]


class PublishPipeline:
    """Send posts.

    Args:
        connect: makes a line to Redis, which tells what it hears.
        cluster: the cluster, if it is one: redis-py knows to which node each command goes.
        keys: how keys are named.
        limits: what is kept of a channel.
        link: is told of failures.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[Any], None]], RedisConnection],
        cluster: RedisCluster | None,
        keys: ChannelKeys,
        limits: Limits,
        link: CommandClient,
    ) -> None:
        self._connect = connect
        self._cluster = cluster
        self._keys = keys
        self._limits = limits
        self._link = link
        self._numbering = PublisherSequence()
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Waiting] = deque()
        self._lot: list[_Waiting] = []  # what is under way
        self._dispatch = PublishBatch((), self._numbering, keys, limits)
        self._began = 0.0
        self._line: RedisConnection | None = None
        self._answers: list[Any] = []
        self._missing = 0  # how many answers there are to come
        self._is_awaited = False  # without a task
        self._heard: asyncio.Future[None] | None = None  # by one
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._emptied: asyncio.Future[None] | None = None

    def publish(self, post: OutgoingEvent) -> "asyncio.Future[bool]":
        """Send a post, and return its outcome."""
        outcome: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append((post, outcome))
        if not self._lot:
            self._next()
        return outcome

    async def close(self) -> None:
        """Send what is to be sent, and hang up."""
        if self._lot:
            self._emptied = self._emptied or self._loop.create_future()
            await asyncio.shield(self._emptied)
        await self._hang_up()

    def _next(self) -> None:
        """Send what waits, as much as leaves together."""
        number = first_of(post for post, _ in self._waiting)
        self._lot = [self._waiting.popleft() for _ in range(number)]
        posts = [post for post, _ in self._lot]
        self._dispatch = PublishBatch(posts, self._numbering, self._keys, self._limits)
        self._began = time.monotonic()
        if self._line is not None and self._line.is_open:
            self._is_awaited = True
            self._say(self._line)
            if self._timer is None:
                self._timer = self._loop.call_later(ANSWER_SECONDS, self._watch)
        else:
            self._task = self._loop.create_task(self._insist())

    def _say(self, line: RedisConnection) -> None:
        self._answers = []
        self._missing = self._dispatch.answers
        line.say(self._dispatch.packed())

    def _hear(self, answer: Any) -> None:
        self._answers.append(answer)
        self._missing -= 1
        if self._missing:
            return
        if self._heard is not None:
            self._heard.set_result(None)
        elif self._is_awaited:
            self._is_awaited = False
            self._dispatch.take(self._answers[1:])
            if self._dispatch.is_settled:
                self._settle()
            else:
                self._task = self._loop.create_task(self._insist())

    def _watch(self) -> None:
        """Cut a line that does not answer; one timer now and then, and not one for each lot."""
        self._timer = None
        if not self._is_awaited or self._line is None:
            return
        left = self._began + ANSWER_SECONDS - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._watch)
        else:
            self._line.cut(TimeoutError("Redis has not answered in time"))

    def _lose(self, line: RedisConnection, lost: "asyncio.Future[BaseException]") -> None:
        """Take note that a line is gone, and ask again by another one."""
        if self._is_awaited and line is self._line:
            self._is_awaited = False
            self._link.failed("publish", lost.result())
            self._task = self._loop.create_task(self._insist())

    def _settle(self) -> None:
        """Tell the outcomes, and go on."""
        if self._dispatch.last_failure is not None:
            self._link.failed("publish", self._dispatch.last_failure)
        if self._dispatch.is_settled:
            self._link.flushed(time.monotonic() - self._began)
        self._dispatch.give_up()
        lot, self._lot = self._lot, []
        for (_, outcome), result in zip(lot, self._dispatch.outcomes, strict=True):
            _tell(outcome, result)
        if self._waiting:
            self._next()
        elif self._emptied is not None:
            self._emptied.set_result(None)
            self._emptied = None

    async def _insist(self) -> None:
        """Ask until each outcome is known, or for long enough."""
        dispatch = self._dispatch
        try:
            for pause in pauses():
                dispatch.last_failure = None
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        while dispatch.take(await self._ask()):
                            pass
                except FAILURES as exc:
                    dispatch.last_failure = exc
                    await self._hang_up()
                if dispatch.is_settled or time.monotonic() > self._began + PATIENCE_SECONDS:
                    break
                if dispatch.last_failure is not None:
                    self._link.failed("publish", dispatch.last_failure)
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            await self._hang_up()  # an answer to this is none to what comes
            for _, outcome in (*self._lot, *self._waiting):
                _tell(outcome, StoreError("publish: the event loop is closing"))
            self._waiting.clear()
            raise
        finally:
            self._task = None
            self._settle()

    async def _ask(self) -> list[Any]:
        if self._cluster is not None:
            return await asyncio.gather(
                *(self._cluster.execute_command(*one) for one in self._dispatch.commands()),
                return_exceptions=True,
            )
        line = await self._open_line()
        self._heard = self._loop.create_future()
        try:
            self._say(line)
            await asyncio.wait((self._heard, line.lost), return_when=asyncio.FIRST_COMPLETED)
            if not self._heard.done():
                raise line.lost.result()
        finally:
            self._heard = None
        return self._answers[1:]

    async def _open_line(self) -> RedisConnection:
        if self._line is None or not self._line.is_open:
            await self._hang_up()
            self._line = self._connect(self._hear)
            self._line.lost.add_done_callback(partial(self._lose, self._line))
            await self._line.open()
        return self._line

    async def _hang_up(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        line, self._line = self._line, None
        if line is not None:
            await line.close()


def _tell(outcome: "asyncio.Future[bool]", result: _Result) -> None:
    if outcome.done():
        return
    if isinstance(result, StoreError):
        outcome.set_exception(result)
    else:
        outcome.set_result(bool(result))
