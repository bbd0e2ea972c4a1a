"""The hub of one event loop: hears of what is published on the channels that are read here.

One connection for all of them, however many readers there are. News carry the events themselves, so
that nobody has to ask; but they are news and no more: the log is what counts. Where news do not
follow one another, where the connection was new, and every few seconds anyhow, readers look there.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

from sse_middleware.channels.events import Position, StoredEvent, entry_of, number_of
from sse_middleware.channels.redis_connection import RedisConnection, packed_command
from sse_middleware.stores.redis.client import FAILURES, PATIENCE_SECONDS

logger = logging.getLogger("sse_middleware")

_TICK_SECONDS: Final = 1.0
_LOOK_EVERY: Final = 5
"""How many ticks a channel is silent until its readers look; less, while nothing can be heard."""
_DEAF_SECONDS: Final = 3.0
"""How long a connection may be silent that is asked each second whether it lives."""
_PAUSE_SECONDS: Final = 0.5
_TOPICS_AT_ONCE: Final = 500
_RECENT_ENTRIES: Final = 256
_RECENT_BYTES: Final = 1 << 16
_PING: Final = packed_command("PING")


class ChannelNews:
    """What is heard of one channel, for all its readers here.

    Attributes:
        topic: where it is heard.
        readers: how many there are.
        doubts: grows where the readers have to look into the log.
        changes: grows with whatever its readers have to look at.
        counted: the id of the last entry that was none; each is counted once.
        silent_ticks: for how long nothing was heard.
    """

    __slots__ = (
        "_bytes",
        "_loop",
        "_recent",
        "_waiting",
        "changes",
        "counted",
        "doubts",
        "readers",
        "silent_ticks",
        "topic",
    )

    def __init__(self, topic: bytes) -> None:
        self.topic = topic
        self.readers = 0
        self.doubts = 0
        self.changes = 0
        self.counted = (0, 0)
        self.silent_ticks = 0
        self._recent: deque[StoredEvent] = deque()
        self._bytes = 0
        self._loop = asyncio.get_running_loop()
        self._waiting: list[asyncio.Future[None]] = []

    def after(self, place: Position) -> list[StoredEvent] | None:
        """Return what is known to stand behind `place`, `None` where only the log knows."""
        recent = self._recent
        if not recent or (place.number is not None and place.number >= recent[-1].number):
            return []
        if place.number is None or place.number + 1 < recent[0].number:
            return None
        if place.number + 1 == recent[-1].number:  # the usual case
            return [recent[-1]]
        return list(islice(recent, place.number + 1 - recent[0].number, None))

    def hear(self, entries: Iterable[StoredEvent]) -> None:
        """Take in what was published."""
        recent = self._recent
        self.silent_ticks = 0
        for entry in entries:
            if recent and entry.number != recent[-1].number + 1:
                recent.clear()
                self._bytes = 0
                self.doubts += 1
            recent.append(entry)
            self._bytes += len(entry.data)
            while len(recent) > _RECENT_ENTRIES or (
                self._bytes > _RECENT_BYTES and len(recent) > 1
            ):
                self._bytes -= len(recent.popleft().data)
        self._wake()

    def doubt(self) -> None:
        """Let all readers look into the log."""
        self.doubts += 1
        self.silent_ticks = 0
        self._wake()

    def change(self) -> "asyncio.Future[None]":
        """Return what is done with the next change; who has left is forgotten with it too."""
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        return waiter

    def _wake(self) -> None:
        self.changes += 1
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)


class PubSubListener:
    """Listen, as long as anybody reads.

    Args:
        connect: makes a line to Redis, which tells what it hears.
        failed: is told of failures.
    """

    def __init__(
        self,
        connect: Callable[[Callable[[Any], None]], RedisConnection],
        failed: Callable[[str, BaseException], None],
    ) -> None:
        self._connect = connect
        self._failed = failed
        self._news: dict[bytes, ChannelNews] = {}
        self._task: asyncio.Task[None] | None = None
        self._line: RedisConnection | None = None
        self._heard_at = 0.0
        self._closes = False  # the driver may take a cancellation for itself

    def join(self, topic: str) -> ChannelNews:
        """Take in a reader."""
        name = topic.encode()
        news = self._news.get(name)
        if news is None:
            news = self._news[name] = ChannelNews(name)
            self._say("SUBSCRIBE", name)
        news.readers += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        return news

    def leave(self, news: ChannelNews) -> None:
        """Let a reader go."""
        news.readers -= 1
        if not news.readers:
            del self._news[news.topic]
            self._say("UNSUBSCRIBE", news.topic)

    async def close(self) -> None:
        """Listen no more."""
        self._closes = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    async def _run(self) -> None:
        while not self._closes:
            line = self._connect(self._hear)
            try:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await line.open()
                self._heard_at = time.monotonic()
                self._line = line
                for some in _parts(list(self._news)):
                    self._say("SUBSCRIBE", *some)
                await self._keep(line)
            except FAILURES as exc:
                self._failed("subscribe", exc)
            except Exception:
                logger.exception("the hub goes on, whatever this was")
            finally:
                self._line = None
                await line.close()
            for news in self._news.values():
                news.doubt()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _keep(self, line: RedisConnection) -> None:
        """Stay until the connection is lost."""
        while not self._closes:
            line.say(_PING)
            await asyncio.wait((line.lost,), timeout=_TICK_SECONDS)
            if line.lost.done():
                raise line.lost.result()
            if time.monotonic() > self._heard_at + _DEAF_SECONDS:
                raise TimeoutError("nothing is heard any more")
            for news in list(self._news.values()):
                news.silent_ticks += 1
                if news.silent_ticks >= _LOOK_EVERY:
                    news.doubt()

    def _hear(self, reply: Any) -> None:
        """Take in what Redis has to say, and wake who waits for it, in the same turn."""
        self._heard_at = time.monotonic()
        if isinstance(reply, Exception) and self._line is not None:
            self._line.cut(reply)  # a subscription is refused, and may not be by the next line
        news = self._news.get(reply[1]) if isinstance(reply, list) else None
        if news is None:  # a PONG, or of a channel that nobody reads any more
            return
        if reply[0] == b"message":
            entries = entries_in(reply[2])
            if entries is None:
                news.doubt()
            else:
                news.hear(entries)
        elif reply[0] == b"subscribe":
            news.doubt()

    def _say(self, verb: str, *names: bytes) -> None:
        """Tell Redis what is to be heard; who connects says it all."""
        if self._line is not None and self._line.is_open:
            self._line.say(packed_command(verb, *names))


def entries_in(news: bytes) -> list[StoredEvent] | None:
    """Return what was published, `None` where something else has spoken."""
    first, *words = news.split(b"\n")
    number = number_of(first)
    if number is None or not words or len(words) % 3:
        return None
    entries: list[StoredEvent] = []
    for place in range(0, len(words), 3):
        entry = entry_of(words[place], number, words[place + 1], words[place + 2])
        if entry is None:
            return None
        entries.append(entry)
        number += 1
    return entries


def _parts(names: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [names[at : at + _TOPICS_AT_ONCE] for at in range(0, len(names), _TOPICS_AT_ONCE)]
