"""Posts on their way to Redis: what is sent, and sent again until the outcome is known.

No I/O: an event loop and a thread do it each in its own way. An answer may be lost and a command
be late, so each post has a number of its publisher's, and the script takes no number twice. A batch
that is sent again has the same numbers.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from itertools import count, islice
from typing import Any, Final

from redis.exceptions import NoPermissionError, NoScriptError, ResponseError

from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import ACK, OutgoingEvent
from sse_middleware.channels.redis_connection import packed, packed_command
from sse_middleware.errors import StoreError
from sse_middleware.stores.redis.commands import SCHEMA, Command, digest

_SCRIPT: Final = files(__package__).joinpath("lua/publish.lua").read_text()
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_PING: Final = packed_command("PING")
_POST: Final = b"$%d\r\n%b\r\n" * 4
"""The words of a post, packed; as `packed` does it, in one go."""
_HEAD_LENGTH: Final = 13
"""How many words stand before the first post."""
_HEADS_KEPT: Final = 512
_LOG: Final = "channel"
_ABOUT: Final = "about"
_TOPIC: Final = "topic"
_SEEN_SECONDS: Final = 120
"""How late a command may come and still be known; longer than anybody goes on to try."""
_PASSING: Final = (
    "OOM",
    "BUSY",
    "LOADING",
    "READONLY",
    "MISCONF",
    "NOREPLICAS",
    "DOWN",
    "TRYAGAIN",
)
"""What Redis refuses now and may not refuse in a moment."""
_UNKNOWN: Final = "whether the event is in its channel is not known; under a key, publish it again"
MOST_AT_ONCE: Final = 128
MOST_BYTES_AT_ONCE: Final = 1 << 20
PATIENCE_SECONDS: Final = 10.0
"""How long a publisher tries."""
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


class ChannelKeys:
    """The names of what we keep; all of one channel hash to one slot of a cluster.

    A channel's own name is nowhere: it is a secret.

    Args:
        prefix: what stands before all of them.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}{SCHEMA}:"

    def of(self, channel: str) -> str:
        """Return what the keys of a channel begin with."""
        return f"{self._prefix}{{{digest(channel)}}}:"

    def log(self, channel: str) -> str:
        """Return the key of the entries."""
        return self.of(channel) + _LOG

    def about(self, channel: str) -> str:
        """Return the key of what is known of a channel."""
        return self.of(channel) + _ABOUT

    def topic(self, channel: str) -> str:
        """Return where news of a channel are told."""
        return self.of(channel) + _TOPIC


class PublisherSequence:
    """Who publishes, and its numbers; one for each process and loop, since a fork shares memory.

    Attributes:
        publisher: its name.
        heads: how its commands begin, packed, by channel.
    """

    def __init__(self) -> None:
        self.publisher = f"{os.getpid():x}.{secrets.token_hex(8)}"
        self.heads: dict[str, bytes] = {}
        self._numbers = count(1)

    def next(self) -> int:
        """Return the next number."""
        return next(self._numbers)


class PublishBatch:
    """Some posts of one publisher, until each outcome is known.

    Args:
        posts: in the order in which they are to stand.
        numbering: of the publisher.
        keys: how keys are named.
        limits: what is kept of a channel.

    Attributes:
        outcomes: of each post, in order: whether it stands there, a failure, or `None` so far.
    """

    def __init__(
        self,
        posts: Sequence[OutgoingEvent],
        numbering: PublisherSequence,
        keys: ChannelKeys,
        limits: Limits,
    ) -> None:
        self.outcomes: list[bool | StoreError | None] = [None] * len(posts)
        self._posts = [(numbering.next(), post) for post in posts]
        self._numbering = numbering
        self._keys = keys
        self._limits = limits
        self._open: dict[str, list[int]] = {}  # the places of the posts of each channel
        for place, post in enumerate(posts):
            self._open.setdefault(post.channel, []).append(place)
        self._knows_script = True
        self.last_failure: BaseException | None = None

    @property
    def is_settled(self) -> bool:
        """Whether each outcome is known."""
        return not self._open

    @property
    def answers(self) -> int:
        """How many answers there are to what is sent packed; the first says nothing."""
        return 1 + len(self._open)

    def commands(self) -> list[Command]:
        """Return what is to be sent: a command for each channel."""
        return [self._command(channel, places) for channel, places in self._open.items()]

    def packed(self) -> bytes:
        """Return the same, packed, behind a command that says nothing and is answered too.

        Of the clients that it has something for, Redis writes to the one first that it had
        something for last. Thus to the readers, who wait, and then to us.
        """
        return _PING + b"".join(
            self._packed(channel, places) for channel, places in self._open.items()
        )

    def take(self, answers: Sequence[Any]) -> bool:
        """Take note of what Redis has answered to `commands`, an exception where it has refused.

        Returns:
            Whether it is to be asked again at once.
        """
        again = False
        for channel, answer in zip(list(self._open), answers, strict=True):
            if isinstance(answer, NoScriptError):
                self._knows_script, again = False, True
            elif not isinstance(answer, Exception):
                for place, result in zip(self._open.pop(channel), answer, strict=True):
                    self.outcomes[place] = bool(result)
            else:
                self.last_failure = answer
                if _is_final(answer):
                    self._fail(channel, answer)
        return again

    def give_up(self) -> None:
        """Let all that is open fail."""
        for channel in list(self._open):
            self._fail(channel, self.last_failure)

    def _fail(self, channel: str, cause: BaseException | None) -> None:
        reason = "it was interrupted" if cause is None else type(cause).__name__
        for place in self._open.pop(channel):
            failure = StoreError(f"publish: {reason}; {_UNKNOWN}")
            failure.__cause__ = cause
            self.outcomes[place] = failure

    def _command(self, channel: str, places: Sequence[int]) -> Command:
        words = self._head(channel)
        for place in places:
            number, post = self._posts[place]
            words += (number, post.key, post.event, post.data)
        return words

    def _packed(self, channel: str, places: Sequence[int]) -> bytes:
        if not self._knows_script:
            return packed_command(*self._command(channel, places))
        heads = self._numbering.heads
        head = heads.get(channel)
        if head is None:
            if len(heads) >= _HEADS_KEPT:
                heads.clear()
            head = heads[channel] = packed(self._head(channel))
        parts = [b"*%d\r\n" % (_HEAD_LENGTH + 4 * len(places)), head]
        for place in places:
            number, (_, event, data, key) = self._posts[place]
            said, name, token = b"%d" % number, event.encode(), key.encode()
            parts.append(
                _POST % (len(said), said, len(token), token, len(name), name, len(data), data)
            )
        return b"".join(parts)

    def _head(self, channel: str) -> Command:
        begins, limits, publisher = self._keys.of(channel), self._limits, self._numbering.publisher
        return (
            *(("EVALSHA", _SHA) if self._knows_script else ("EVAL", _SCRIPT)),
            *(3, begins + _LOG, begins + _ABOUT, f"{begins}seen:{publisher}"),
            *(int(limits.ttl * 1000) or 1, limits.max_events, limits.max_bytes),
            *(begins + _TOPIC, ACK, publisher, _SEEN_SECONDS * 1000),
        )


def pauses() -> Iterator[float]:
    """Return how long a publisher waits before each further attempt."""
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE)


def first_of(waiting: Iterable[OutgoingEvent]) -> int:
    """Return how many posts leave together: as many as there are, up to a bound."""
    number = size = 0
    for post in islice(waiting, MOST_AT_ONCE):
        size += len(post.data)
        if number and size > MOST_BYTES_AT_ONCE:
            break
        number += 1
    return number


def _is_final(refusal: Exception) -> bool:
    """Tell whether another attempt would be refused too."""
    return isinstance(refusal, NoPermissionError) or (
        isinstance(refusal, ResponseError) and not any(word in str(refusal) for word in _PASSING)
    )
