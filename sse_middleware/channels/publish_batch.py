"""A batch of events on its way to Redis; it is sent again until each outcome is known.

This module does no I/O; an event loop and a thread each do it in their own way. An answer may be
lost, and a command may arrive late. Each event therefore has a sequence number of its publisher,
and the script accepts each number once. A repeated batch has the same numbers.
"""

import os
import secrets
from collections.abc import Iterable, Sequence
from itertools import count, islice
from typing import Any, Final

from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import NoScriptError

from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import ACK, OutgoingEvent
from sse_middleware.channels.redis_connection import PING, pack_commands
from sse_middleware.errors import StoreError
from sse_middleware.stores.redis.keys import Keys
from sse_middleware.stores.redis.refusals import is_final
from sse_middleware.stores.redis.scripts import Command, load_script, milliseconds

_PUBLISH: Final = load_script("sse_middleware.channels", "publish")
_MAX_HEADS: Final = 512
"""The most channels for which the first words of the command are kept."""
_SEEN_SECONDS: Final = 120
"""How late a command may arrive; longer than a publisher repeats it."""
_UNKNOWN: Final = (
    "it is not known whether the event is in its channel; under a key, publish it again"
)
MAX_EVENTS: Final = 128
"""The most events of a batch."""
MAX_BYTES: Final = 1 << 20
"""The most bytes of a batch that has more than one event."""
PUBLISH_SECONDS: Final = 10.0
"""Bounds the time of a call, in which its event is sent and repeated."""


class PublisherSequence:
    """The name and the sequence numbers of a publisher; one for each process and event loop.

    Attributes:
        publisher: its name.
        heads: the first words of its commands, by channel.
    """

    def __init__(self) -> None:
        self.publisher = f"{os.getpid():x}.{secrets.token_hex(8)}"
        self.heads: dict[str, Command] = {}
        self._numbers = count(1)

    def next(self) -> int:
        """Return the next number."""
        return next(self._numbers)


class PublishBatch:
    """Some events of one publisher, until each outcome is known.

    Args:
        events: in the order of publishing.
        sequence: of the publisher.
        keys: builds keys.
        limits: how much of a channel is kept.

    Attributes:
        outcomes: of each event: whether this call has published it, an error, or `None` if that is
            not known yet.
        last_failure: the last error, `None` without one.
    """

    def __init__(
        self,
        events: Sequence[OutgoingEvent],
        sequence: PublisherSequence,
        keys: Keys,
        limits: Limits,
    ) -> None:
        self.outcomes: list[bool | StoreError | None] = [None] * len(events)
        self._events = [(sequence.next(), event) for event in events]
        self._sequence = sequence
        self._keys = keys
        self._limits = limits
        self._open: dict[str, list[int]] = {}  # the indexes of events without outcome, by channel
        for index, event in enumerate(events):
            self._open.setdefault(event.channel, []).append(index)
        self._has_script = True  # as far as is known
        self.last_failure: BaseException | None = None

    @property
    def is_settled(self) -> bool:
        """Whether each outcome is known."""
        return not self._open

    @property
    def answers(self) -> int:
        """The number of answers to `packed`; the first one is that of PING."""
        return 1 + len(self._open)

    def commands(self) -> list[Command]:
        """Return a command for each channel."""
        return [self._command(channel, indexes) for channel, indexes in self._open.items()]

    def packed(self) -> bytes:
        """Return PING and the commands as bytes of the Redis protocol.

        Redis writes to its clients in the reverse order of their last output. After a PING, it
        writes to the subscribers, which are waiting, before it answers the publisher.
        """
        return PING + pack_commands(self.commands())

    def take(self, answers: Sequence[Any]) -> bool:
        """Process the answers to `commands`, an exception for a refused one.

        Returns:
            Whether the batch must be sent again at once.
        """
        again = False
        for channel, answer in zip(list(self._open), answers, strict=True):
            if isinstance(answer, NoScriptError):
                self._has_script, again = False, True
            elif not isinstance(answer, Exception):
                for index, result in zip(self._open.pop(channel), answer, strict=True):
                    self.outcomes[index] = bool(result)
            else:
                self.last_failure = answer
                if is_final(answer):
                    self._fail(channel, answer)
        return again

    def fail_open(self) -> None:
        """Set an error as the outcome of all events that have none."""
        for channel in list(self._open):
            self._fail(channel, self.last_failure)

    def abandon(self, index: int) -> None:
        """Set an error as the outcome of an event, if it has none; it is not sent again."""
        if self.outcomes[index] is None:
            channel = self._events[index][1].channel
            self.outcomes[index] = unknown_outcome(self.last_failure)
            self._open[channel].remove(index)
            if not self._open[channel]:
                del self._open[channel]

    def _fail(self, channel: str, cause: BaseException | None) -> None:
        for index in self._open.pop(channel):
            self.outcomes[index] = unknown_outcome(cause)

    def _command(self, channel: str, indexes: Sequence[int]) -> Command:
        words = self._head(channel)
        for index in indexes:
            number, (_, event, data, key) = self._events[index]
            words += (str(number), key, event, data)
        return words if self._has_script else _PUBLISH.with_text(words)

    def _head(self, channel: str) -> Command:
        heads = self._sequence.heads
        head = heads.get(channel)
        if head is None:
            if len(heads) >= _MAX_HEADS:
                heads.clear()
            keys, limits, publisher = (
                self._keys.channel(channel),
                self._limits,
                self._sequence.publisher,
            )
            head = heads[channel] = _PUBLISH.call(
                (keys.log, keys.about, keys.seen + publisher),
                *(milliseconds(limits.ttl), str(limits.max_events), str(limits.max_bytes)),
                *(keys.topic, ACK, publisher, milliseconds(_SEEN_SECONDS)),
            )
        return head


def unknown_outcome(cause: BaseException | None) -> StoreError:
    """Return the error for an event that may be in its channel; `None`: without an answer."""
    reason = "Redis has not answered in time" if cause is None else type(cause).__name__
    if isinstance(cause, LostConnectionError | OSError) and str(cause):  # without any payload
        reason += f": {str(cause).rstrip('.')}"
    failure = StoreError(f"publish: {reason}; check SSE_REDIS_URL or the URL; {_UNKNOWN}")
    failure.__cause__ = cause
    return failure


def batch_length(events: Iterable[OutgoingEvent]) -> int:
    """Return the number of waiting events that the next batch contains."""
    number = size = 0
    for event in islice(events, MAX_EVENTS):
        size += len(event.data)
        if number and size > MAX_BYTES:
            break
        number += 1
    return number
