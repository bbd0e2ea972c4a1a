"""What publishers and readers of channels have observed, and whether it is what is promised."""

import asyncio
import itertools
import json
import math
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from sse_middleware import StoreError
from sse_middleware.channels import BlockingPublisher, Publisher, subscribe
from tests.support.waiting import HANG_SECONDS

_PAUSE_SECONDS = 0.02
"""The time between two events of a publisher."""


@dataclass
class History:
    """All observations of one run.

    Attributes:
        published: by channel, the events that a call has confirmed, with the time of its return.
        doubtful: by channel, the events whose call has failed.
        received: by channel, the events of each reader; a list for each beginning of its channel.
        truncations: by channel, the number of `truncated`.
    """

    published: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    doubtful: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    received: dict[str, list[list[list[str]]]] = field(default_factory=lambda: defaultdict(list))
    truncations: Counter[str] = field(default_factory=Counter)

    def count(self, since: float = -math.inf) -> int:
        """Return how many events were published after a time."""
        return sum(
            at > since for texts in list(self.published.values()) for at in list(texts.values())
        )

    def problems(self, *, may_be_lost_until: float = -math.inf) -> Iterator[str]:
        """Yield each broken promise.

        Args:
            may_be_lost_until: the time up to which Redis may have lost what it had confirmed.
        """
        loses = may_be_lost_until > -math.inf
        for channel, readers in self.received.items():
            published, doubtful = self.published[channel], self.doubtful[channel]
            may_be_missing = {text for text, at in published.items() if at <= may_be_lost_until}
            for parts in readers:
                for part in parts:
                    yield from _order_problems(channel, part)
                    if strange := set(part) - set(published) - doubtful:
                        yield f"{channel}: no publisher has sent {strange}"
                missing = set(published) - set(itertools.chain(*parts))
                if not missing <= may_be_missing:
                    yield f"{channel}: {sorted(missing)} are missing"
                if missing and not self.truncations[channel]:
                    yield f"{channel}: {sorted(missing)} are missing without a truncated"
            if self.truncations[channel] and not loses:
                yield f"{channel}: {self.truncations[channel]} truncated"


def _order_problems(channel: str, part: list[str]) -> Iterator[str]:
    if repeated := [text for text, times in Counter(part).items() if times > 1]:
        yield f"{channel}: {repeated} have come twice"
    last: dict[str, int] = {}
    for text in part:
        publisher, number = text.split("-")
        if last.get(publisher, -1) > int(number):
            yield f"{channel}: {text} has come after {last[publisher]}"
        last[publisher] = int(number)


class Run:
    """Publishers and readers of some channels.

    Args:
        url: of Redis.
        channels: the names of the channels.
        seed: of the choice of channels.
    """

    def __init__(self, url: str, channels: list[str], seed: int) -> None:
        self.history = History()
        self._url = url
        self._channels = channels
        self._seed = seed
        self._stopped = threading.Event()
        self._tasks: list[asyncio.Future[None]] = []
        self._readers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to publish and to read."""
        for name in ("a", "b"):
            self._tasks.append(asyncio.ensure_future(self._publish(name)))
        for name in ("c", "d"):
            self._tasks.append(asyncio.ensure_future(asyncio.to_thread(self._publish_all, name)))
        for channel in self._channels:
            for _ in range(2):
                self._readers.append(asyncio.ensure_future(self._read(channel)))

    async def finish(self) -> None:
        """Stop to publish, end all channels, and wait until all readers have their ends."""
        self._stopped.set()
        async with asyncio.timeout(HANG_SECONDS):
            await asyncio.gather(*self._tasks)
            async with Publisher(self._url) as publisher:
                for channel in self._channels:
                    while not await self._has_ended(publisher, channel):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
            await asyncio.gather(*self._readers)

    async def _has_ended(self, publisher: Publisher, channel: str) -> bool:
        try:
            await publisher.finish(channel)
        except StoreError:
            return False
        return True

    async def _publish(self, name: str) -> None:
        async with Publisher(self._url) as publisher:
            for channel, text in self._events(name):
                try:
                    await publisher.publish(channel, "event", text)
                except StoreError:
                    self.history.doubtful[channel].add(text)
                else:
                    self.history.published[channel][text] = time.monotonic()
                await asyncio.sleep(_PAUSE_SECONDS)

    def _publish_all(self, name: str) -> None:
        with BlockingPublisher(self._url) as publisher:
            for channel, text in self._events(name):
                try:
                    publisher.publish(channel, "event", text)
                except StoreError:
                    self.history.doubtful[channel].add(text)
                else:
                    self.history.published[channel][text] = time.monotonic()
                time.sleep(_PAUSE_SECONDS)

    def _events(self, name: str) -> Iterator[tuple[str, str]]:
        rng = random.Random(f"{self._seed}{name}")
        for number in itertools.count():
            if self._stopped.is_set():
                return
            yield rng.choice(self._channels), f"{name}-{number}"

    async def _read(self, channel: str) -> None:
        """Read a channel to its end, and come back after each failure."""
        parts: list[list[str]] = [[]]
        self.history.received[channel].append(parts)
        position: str | None = None
        while True:
            events = subscribe(channel, ack_timeout=None, history=position, ids=True, url=self._url)
            async for event in events:
                if event.event == "event":
                    parts[-1].append(event.json())
                    position = event.id
                elif event.event == "complete":
                    return
                else:
                    code = json.loads(event.data)["error"]["code"]
                    if code in ("truncated", "gone"):
                        self.history.truncations[channel] += 1
                        parts.append([])
                        position = None
            await asyncio.sleep(0.1)
