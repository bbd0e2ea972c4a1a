"""The link of one event loop to Redis: its keys, its client, and the lease that says that it lives.

What many readers ask at a time is asked in one go, by one connection, and what several ask alike is
asked once. Whatever goes wrong comes out of here as a `StoreError`, at once where Redis did not
answer a moment ago.
"""

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.resources import files
from itertools import islice
from typing import Any, Final

from redis.asyncio.cluster import RedisCluster
from redis.client import NEVER_DECODE
from redis.exceptions import ClusterError, ResponseError

from sse_middleware.errors import StoreError
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.redis.client import (
    ANSWER_SECONDS,
    FAILURES,
    PATIENCE_SECONDS,
    AnyRedis,
    blocking_client,
    checked,
    client_for,
    is_to_end,
    patience_of,
)
from sse_middleware.stores.redis.process_lease import ProcessLease, lease_milliseconds

logger = logging.getLogger("sse_middleware")

Command = tuple[str | bytes | int, ...]

SCHEMA: Final = 1
"""Stands in each key, so that two versions of us can share a Redis during an upgrade."""
_BLOCK_SECONDS: Final = 1.0
"""How long a command waits at Redis for messages."""
_PAUSE_SECONDS: Final = 0.5
"""How long nobody asks behind a failure."""
_FORGETFUL_SECONDS: Final = 2.0
_WARNING_SECONDS: Final = 60.0
"""How often at most a failure is told to the operator."""
_ASKED_AT_ONCE: Final = 64
_INBOX_LENGTH: Final = 10_000
# XADD makes a key that lives for ever, and no command sets its time with it.
_APPEND: Final = files(__package__).joinpath("lua/append.lua").read_text()


class Keys:
    """The names of what we keep; all of one stream hash to one slot of a cluster.

    Args:
        prefix: what stands before all of them.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}{SCHEMA}:"

    def log(self, stream_id: str) -> str:
        """Return the key of the entries of a stream."""
        return f"{self._prefix}{{{stream_id}}}:log"

    def info(self, stream_id: str) -> str:
        """Return the key of what is known of it."""
        return f"{self._prefix}{{{stream_id}}}:info"

    def name(self, digest: str) -> str:
        """Return the key of the latest stream of a name."""
        return f"{self._prefix}name:{digest}"

    def lease(self, process: str) -> str:
        """Return the key that lives as long as a process."""
        return f"{self._prefix}{{{process}}}:lease"

    def inbox(self, process: str) -> str:
        """Return the key of what other processes have to say to it."""
        return f"{self._prefix}{{{process}}}:inbox"


def digest(name: str) -> str:
    """Return what stands for a name of the app's in a key."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def append(key: str, milliseconds: int, *words: str | bytes | int) -> Command:
    """Return the command that adds to a stream which may be new, and lives so long then."""
    return ("EVAL", _APPEND, 1, key, milliseconds, *words)


class CommandClient:
    """The link of one event loop to Redis.

    Args:
        url: where it is, `""` where a client is given.
        client: the user's own client.
        keys: how keys are named.
        observers: who is told of failures.
        lease_seconds: within which time a process that has died is known to be dead.

    Attributes:
        process: a name for this process and loop, which nobody can guess.
        lease_seconds: as given.
    """

    def __init__(
        self,
        url: str,
        client: AnyRedis | None,
        keys: Keys,
        observers: Sequence[Observer],
        lease_seconds: float,
    ) -> None:
        self.keys = keys
        self.process = secrets.token_hex(8)
        self.lease_seconds = lease_seconds
        self._client: AnyRedis = client_for(url) if client is None else checked(client)
        self._is_ours = client is None
        self._url = url
        self._observers = observers
        self._rests_until = 0.0
        self._failed_at = -math.inf
        self._lease: ProcessLease | None = None
        self._warned_at = -math.inf
        self._is_lost = False
        self._questions: dict[Command, asyncio.Future[Any]] = {}
        self._task: asyncio.Task[None] | None = None

    async def ask(self, operation: str, *commands: Command) -> list[Any]:
        """Ask Redis something, for as long as a reader waits, and return the answers.

        Raises:
            StoreError: it is out of reach, has refused, or was out of reach a moment ago.
        """
        if time.monotonic() < self._rests_until:
            raise StoreError(f"{operation}: Redis did not answer a moment ago")
        loop = asyncio.get_running_loop()
        answers = [self._questions.setdefault(one, loop.create_future()) for one in commands]
        if self._task is None:
            self._task = loop.create_task(self._answer())
        await asyncio.wait(answers)  # others may wait for the same
        try:
            return [answer.result() for answer in answers]
        except (*FAILURES, asyncio.CancelledError) as exc:
            raise StoreError(f"{operation}: {type(exc).__name__}") from exc

    async def write(self, commands: Iterable[Command]) -> list[Any]:
        """Have Redis do something, one command after the other.

        Returns:
            The answers, an exception where one was refused.

        Raises:
            Exception: one of `FAILURES`; the outcome is unknown.
        """
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._pipe(commands)

    @property
    def may_be_forgetful(self) -> bool:
        """Whether Redis may have been emptied a moment ago, and not have all again so far."""
        return time.monotonic() < self._failed_at + _FORGETFUL_SECONDS

    async def read_inbox(self, place: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Wait a while for messages behind `place`.

        Raises:
            Exception: one of `FAILURES`.
        """
        block = min(_BLOCK_SECONDS, patience_of(self._client) / 2)
        milliseconds, inbox = int(block * 1000), self.keys.inbox(self.process)
        words: Command = ("XREAD", "BLOCK", milliseconds, "STREAMS", inbox, place)
        async with asyncio.timeout(block + PATIENCE_SECONDS):
            return _messages(await self._client.execute_command(*words, **{NEVER_DECODE: True}))

    def message_to(self, process: str, words: str) -> Command:
        """Return the command that puts a message into the inbox of a process, if it has one."""
        inbox = self.keys.inbox(process)
        bounds = ("NOMKSTREAM", "MAXLEN", "~", _INBOX_LENGTH)
        return ("XADD", inbox, *bounds, "*", "p", self.process, "w", words)

    def lease_command(self) -> Command:
        """Return the command that says once that this process lives."""
        return (
            "SET",
            self.keys.lease(self.process),
            "1",
            "PX",
            lease_milliseconds(self.lease_seconds),
        )

    def failed(self, operation: str, exc: BaseException) -> None:
        """Take note that Redis did not do its work."""
        logger.debug("%s: %s", operation, type(exc).__name__)
        # What has refused this may do that, and one that waits proves nothing.
        refuses = isinstance(exc, ResponseError) and not isinstance(exc, ClusterError)
        if operation != "inbox" and not refuses:
            self._is_lost = True
            self._failed_at = time.monotonic()
            self._rests_until = self._failed_at + _PAUSE_SECONDS
        if time.monotonic() > self._warned_at + _WARNING_SECONDS:
            self._warned_at = time.monotonic()
            text = "Redis does not %s: %s; streams go on, and may not be resumed"
            logger.warning(text, operation, type(exc).__name__)
        for observer in self._observers:
            observer.store_failed(operation)

    def flushed(self, seconds: float) -> None:
        """Take note that events were written."""
        self._rests_until = 0.0
        for observer in self._observers:
            observer.store_flushed(seconds)

    def hold_lease(self) -> None:
        """Say that this process lives, from now on."""
        if self._lease is None:
            self._lease = ProcessLease(
                partial(blocking_client, self._url, self._client),
                self.keys.lease(self.process),
                self.keys.inbox(self.process),
                append,
                self.lease_seconds,
            )

    def renew_lease(self) -> None:
        """Say so again at once, for Redis may have forgotten."""
        if self._lease is not None:
            self._lease.hurry()

    async def close(self) -> None:
        """Let go of the lease and the connections, and ask no more."""
        self._rests_until = math.inf
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._lease is not None:
            await self._lease.stop()
            self._lease = None
        if self._is_ours:
            await self._client.aclose()

    async def _answer(self) -> None:
        """Ask what is to be asked, as much as there is at a time."""
        asked: dict[Command, asyncio.Future[Any]] = {}
        try:
            while self._questions and not is_to_end():
                asked = dict(islice(self._questions.items(), _ASKED_AT_ONCE))
                for command in asked:
                    del self._questions[command]
                async with asyncio.timeout(PATIENCE_SECONDS):
                    answers = await self._pipe(asked)
                failures = [answer for answer in answers if isinstance(answer, Exception)]
                if failures:
                    self.failed("read", failures[0])
                for question, answer in zip(asked.values(), answers, strict=True):
                    _settle(question, answer)
        except FAILURES as exc:
            self.failed("read", exc)
            for question in (*asked.values(), *self._questions.values()):
                _settle(question, exc)
        finally:
            self._task = None
            for question in (*asked.values(), *self._questions.values()):
                question.cancel()
            self._questions.clear()

    async def _pipe(self, commands: Iterable[Command]) -> list[Any]:
        if self._is_lost and isinstance(self._client, RedisCluster):
            await self._client.aclose()  # or it goes on to ask a node that is not there any more
        self._is_lost = False
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command, **{NEVER_DECODE: True})
        return list(await pipe.execute(raise_on_error=False))


def _settle(question: "asyncio.Future[Any]", answer: Any) -> None:
    if question.done():
        return
    if isinstance(answer, Exception):
        question.set_exception(answer)
        question.exception()  # whoever has asked may have left
    else:
        question.set_result(answer)


def _messages(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the ids and fields that XREAD has given, by whichever protocol and version."""
    parts = answer.values() if isinstance(answer, dict) else [part[1] for part in answer or ()]
    messages: list[tuple[bytes, dict[bytes, bytes]]] = []
    for part in parts:
        for one in part:
            messages += [one] if isinstance(one[0], bytes) else one
    return messages
