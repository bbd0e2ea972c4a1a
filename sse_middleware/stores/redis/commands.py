"""The Redis commands of one event loop: queries of readers, writes, and the lease of the process.

Queries that are asked at the same time leave in one pipeline on one connection, and equal queries
are sent once. Each failure is reported, and leaves as a `StoreError`; after one, queries fail at
once for a moment (see `circuit_breaker`).
"""

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

from redis.asyncio.cluster import RedisCluster
from redis.client import NEVER_DECODE
from redis.exceptions import ClusterError, ResponseError

from sse_middleware.errors import StoreError
from sse_middleware.observability.observer import Observer
from sse_middleware.stores.base import seal_identity
from sse_middleware.stores.circuit_breaker import CircuitBreaker, FailureReport
from sse_middleware.stores.health import Health
from sse_middleware.stores.redis.client import (
    FAILURES,
    AnyRedis,
    Timeouts,
    address_of,
    blocking_client,
    checked,
    client_for,
    close_client,
    describe_failure,
    is_cancelled,
    send_all,
    socket_timeout_of,
)
from sse_middleware.stores.redis.counted_connection import count_connections
from sse_middleware.stores.redis.keys import Keys
from sse_middleware.stores.redis.process_lease import ProcessLease, lease_milliseconds
from sse_middleware.stores.redis.scripts import Command, milliseconds
from sse_middleware.stores.redis.shared_secret import SharedSecret

_BLOCK_SECONDS: Final = 1.0
"""How long Redis holds a command that waits for messages."""
_OPEN_SECONDS: Final = 0.5
"""How long queries fail at once after a failure."""
_RESTORE_SECONDS: Final = 2.0
"""After a failure, Redis may have been emptied. Within this time the workers write all again."""
_MAX_BATCH: Final = 64
"""The most queries in one pipeline."""
_INBOX_LENGTH: Final = "10000"
_CLOCK_MILLISECONDS: Final = 60_000
"""Bounds the difference between the clocks of two servers, the second of which replaces the first.

It also bounds the time for which a message that was read is in flight.
"""


class QueryCoalescer:
    """Send the queries of many callers in one pipeline at a time, and equal queries once.

    Args:
        send: sends commands and returns the answers, an exception for a refused one.
        timeout: the time in seconds for one pipeline.
        failed: receives each failure.
        breaker: after a failure, queries that were not sent fail at once if its circuit is open.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Command]], Awaitable[Sequence[Any]]],
        timeout: float,
        failed: Callable[[BaseException], None],
        breaker: CircuitBreaker,
    ) -> None:
        self._send = send
        self._timeout = timeout
        self._failed = failed
        self._breaker = breaker
        self._queries: dict[Command, asyncio.Future[Any]] = {}
        self._task: asyncio.Task[None] | None = None
        self._in_flight: asyncio.Future[None] | None = None

    def query(self, command: Command) -> "asyncio.Future[Any]":
        """Send a query, and return its answer, or the exception that it has caused."""
        loop = asyncio.get_running_loop()
        answer = self._queries.get(command)
        if answer is None or answer.done():
            answer = self._queries[command] = loop.create_future()
        if self._task is None:
            self._task = loop.create_task(self._run())
        return answer

    async def wait_for_sent(self) -> None:
        """Wait until the queries that have been sent are over, even those of cancelled callers.

        A query that waits and whose caller is cancelled is not sent.
        """
        if self._in_flight is not None:
            await asyncio.wait((self._in_flight,))

    async def close(self) -> None:
        """Let all queries fail with a `StoreError`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Send all queries, a bounded number at a time."""
        sent: dict[Command, asyncio.Future[Any]] = {}
        try:
            while self._queries:
                sent = self._take_batch()
                if sent:
                    self._in_flight = asyncio.get_running_loop().create_future()
                    try:
                        await self._answer(sent)
                    finally:
                        self._in_flight.set_result(None)
                if self._queries and is_cancelled():
                    return
        finally:
            self._task = None
            # After a cancel(), a caller could not tell its own cancellation from this one.
            for query in (*sent.values(), *self._queries.values()):
                _settle(query, StoreError("the query was abandoned"))
            self._queries.clear()

    def _take_batch(self) -> dict[Command, "asyncio.Future[Any]"]:
        """Remove the next queries, and return those with a caller that waits."""
        batch = dict(islice(self._queries.items(), _MAX_BATCH))
        for command in batch:
            del self._queries[command]
        return {command: query for command, query in batch.items() if not query.done()}

    async def _answer(self, sent: dict[Command, "asyncio.Future[Any]"]) -> None:
        """Send queries in one pipeline, and settle them."""
        try:
            async with asyncio.timeout(self._timeout):
                answers = await self._send(list(sent))
        except FAILURES as exc:
            self._failed(exc)
            # A lost connection is no reason to fail queries that were not sent on it. But an open
            # circuit is: each of the next pipelines might wait for the whole timeout too.
            unsent = list(self._queries.values()) if self._breaker.is_open else []
            for query in (*sent.values(), *unsent):
                _settle(query, exc)
            return
        failures = [answer for answer in answers if isinstance(answer, Exception)]
        if failures:
            self._failed(failures[0])
        elif self._breaker.open_until > -math.inf:
            self._breaker.succeeded()
        for query, answer in zip(sent.values(), answers, strict=True):
            _settle(query, answer)


class CommandClient:
    """Send the commands of one event loop.

    Args:
        url: of Redis, `""` if a client is given.
        client: the user's own client.
        keys: builds keys.
        observers: are notified of failures.
        lease_seconds: within this time other processes notice that this one has died.
        timeouts: within which Redis must answer.
        consequence: what a log line about a failure says after the cause: the features that still
            work, and the remedy.

    Attributes:
        process: a name of this process and loop that cannot be guessed.
        keys: as given.
        secret: the secret that all processes share.
        lease_seconds: as given.
        listener: is set to the state of the reader of the inbox.
        timeouts: as given.
    """

    def __init__(
        self,
        url: str,
        client: AnyRedis | None,
        keys: Keys,
        observers: Sequence[Observer],
        *,
        lease_seconds: float,
        timeouts: Timeouts,
        consequence: str,
    ) -> None:
        self.keys = keys
        self.secret = SharedSecret(keys.secret(), self.write)
        self.process = secrets.token_hex(8)
        self.lease_seconds = lease_seconds
        self.timeouts = timeouts
        self._client = client_for(url, timeouts.read) if client is None else checked(client)
        self._is_ours = client is None
        if self._is_ours:
            count_connections(self._client, observers, "store")
        self._block = min(_BLOCK_SECONDS, socket_timeout_of(self._client) / 2)
        self._inbox = keys.inbox(self.process)
        self._last_message = 0  # the milliseconds in the id of the last message
        self._after = b"0-0"  # the id after which messages are read
        self._url = url
        self._observers = observers
        describe = partial(describe_failure, address_of(self._client))
        self._report = FailureReport(observers, describe, consequence)
        self._breaker = CircuitBreaker(FAILURES, self._report, "read", open_seconds=_OPEN_SECONDS)
        self.listener = Health(observers, "listener", "store")
        self._failed_at = -math.inf
        self._lease: ProcessLease | None = None
        self._must_reconnect = False
        self._queries = QueryCoalescer(
            self._send, timeouts.read, partial(self.failed, "read"), self._breaker
        )

    async def query(self, operation: str, *commands: Command) -> list[Any]:
        """Send queries of a reader, and return the answers.

        Raises:
            StoreError: Redis is out of reach, has refused, or was out of reach a moment ago.
        """
        if self._breaker.open_until > -math.inf:  # there was a failure
            self._breaker.check(operation)
        answers = [self._queries.query(command) for command in commands]
        await asyncio.wait(answers)  # no answer is cancelled: other callers may share it
        try:
            return [answer.result() for answer in answers]
        except (*FAILURES, StoreError) as exc:
            raise StoreError(f"{operation}: {type(exc).__name__}") from exc

    def seal(self, name: str) -> str:
        """Return the digest of a name or an identity that only those with the secret compute."""
        return seal_identity(name, self.secret.value)

    async def load_secret(self) -> bytes:
        """Return the secret that all processes share, for a reader.

        Raises:
            StoreError: Redis is out of reach, or has refused.
        """
        try:
            async with asyncio.timeout(self.timeouts.read):
                return await self.secret.load()
        except FAILURES as exc:
            self.failed("read", exc)
            raise StoreError(f"secret: {type(exc).__name__}") from exc

    async def write(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands that change something, in order.

        Returns:
            The answers, an exception for a refused command.

        Raises:
            Exception: one of `FAILURES`; the outcome is unknown.
        """
        async with asyncio.timeout(self.timeouts.write):
            return await self._send(commands)

    @property
    def may_be_incomplete(self) -> bool:
        """Whether Redis may have been emptied a moment ago; a missing key then proves nothing."""
        return time.monotonic() < self._failed_at + _RESTORE_SECONDS

    async def read_inbox(self) -> list[dict[bytes, bytes]]:
        """Return the next messages; wait for one for a while.

        After a failure, the last messages are returned again. Another server may have replaced the
        one that failed, and give smaller ids to new messages, since its clock is behind.

        Raises:
            Exception: one of `FAILURES`.
        """
        after, self._after = self._after, b"%d-0" % max(0, self._last_message - _CLOCK_MILLISECONDS)
        command: Command = (
            "XREAD",
            "BLOCK",
            milliseconds(self._block),
            "STREAMS",
            self._inbox,
            after,
        )
        async with asyncio.timeout(self._block + self.timeouts.read):
            answer = await self._client.execute_command(*command, **{NEVER_DECODE: True})
        self._after, messages = after, _messages(answer)
        if messages:
            self._after = messages[-1][0]
            self._last_message = int(self._after.partition(b"-")[0])
        return [fields for _, fields in messages]

    def first_message_id(self) -> bytes:
        """Return an id for the first message of a new inbox, from any thread.

        The next ids are greater, even if the clock of Redis has been set back, and this process
        reads them.
        """
        return b"%d-0" % (self._last_message + _CLOCK_MILLISECONDS)

    def message_command(self, process: str, words: str) -> Command:
        """Return the command that adds a message to the inbox of a process, if it has one."""
        inbox = self.keys.inbox(process)
        bounds = ("NOMKSTREAM", "MAXLEN", "~", _INBOX_LENGTH)
        return ("XADD", inbox, *bounds, "*", "p", self.process, "w", words)

    def lease_command(self) -> Command:
        """Return the command that renews the lease of this process once."""
        expiry = str(lease_milliseconds(self.lease_seconds))
        return ("SET", self.keys.lease(self.process), "1", "PX", expiry)

    def failed(self, operation: str, exc: BaseException) -> None:
        """Report a failure, and let queries fail at once for a moment.

        A refusal does not: Redis may accept other commands. Nor does a failed wait for messages.
        """
        is_refusal = isinstance(exc, ResponseError) and not isinstance(exc, ClusterError)
        if operation != "inbox" and not is_refusal:
            self._must_reconnect = True
            self._failed_at = time.monotonic()
            self._breaker.open()
        self._report.failed(operation, exc)

    def flushed(self, seconds: float) -> None:
        """Report that events were written, which took so many seconds."""
        if self._breaker.open_until > -math.inf:
            self._breaker.close()
        for observer in self._observers:
            observer.store_flushed(seconds)

    def start_lease(self) -> None:
        """Hold the lease of this process from now on."""
        if self._lease is None:
            self._lease = ProcessLease(
                partial(blocking_client, self._url, self._client),
                self.keys.lease(self.process),
                self._inbox,
                self.first_message_id,
                seconds=self.lease_seconds,
                stop_timeout=self.timeouts.write,
            )

    def renew_lease(self) -> None:
        """Renew the lease now; Redis may have lost it."""
        if self._lease is not None:
            self._lease.renew_now()

    async def close(self) -> None:
        """Give back the lease, close the connections, and let all queries fail."""
        self._breaker.shut_down()
        await self._queries.close()
        if self._lease is not None:
            await self._lease.stop()
            self._lease = None
        if self._is_ours:
            await close_client(self._client)

    async def _send(self, commands: Iterable[Command]) -> list[Any]:
        if self._must_reconnect and isinstance(self._client, RedisCluster):
            await self._client.aclose()  # otherwise it still asks a node that has gone
        self._must_reconnect = False
        return await send_all(self._client, commands)


def circuit_breaker_for(
    url: str, observers: Sequence[Observer], operation: str, consequence: str
) -> CircuitBreaker:
    """Return a circuit breaker for requests to the Redis at `url`.

    Args:
        url: of Redis.
        observers: are notified of failures.
        operation: the name under which they receive them.
        consequence: what a log line about a failure says after the cause.
    """
    describe = partial(describe_failure, address_of(client_for(url)))
    return CircuitBreaker(FAILURES, FailureReport(observers, describe, consequence), operation)


def _settle(query: "asyncio.Future[Any]", answer: Any) -> None:
    if query.done():
        return
    if isinstance(answer, Exception):
        query.set_exception(answer)
        query.exception()  # no log if the caller has gone
    else:
        query.set_result(answer)


def _messages(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the ids and fields in an answer to XREAD, of each protocol and version of redis-py."""
    parts = answer.values() if isinstance(answer, dict) else [part[1] for part in answer or ()]
    messages: list[tuple[bytes, dict[bytes, bytes]]] = []
    for part in parts:
        for message in part:
            messages += [message] if isinstance(message[0], bytes) else message
    return messages
