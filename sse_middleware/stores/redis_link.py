"""The link of one event loop to Redis: its keys, its client, and the lease that says that it lives.

What many readers ask at a time is asked in one go, by one connection, and what several ask alike is
asked once. Whatever goes wrong comes out of here as a `StoreError`, at once where Redis did not
answer a moment ago.
"""

import asyncio
import hashlib
import inspect
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError, ResponseError
from redis.retry import Retry as ThreadRetry

from sse_middleware.errors import StoreError
from sse_middleware.observers import Observer

logger = logging.getLogger("sse_middleware")

AnyRedis = Redis | RedisCluster
Command = tuple[str | bytes | int, ...]

# uvloop raises a RuntimeError where a transport is closed.
FAILURES: Final = (RedisError, RedisClusterException, OSError, TimeoutError, RuntimeError)
SCHEMA: Final = 1
"""Stands in each key, so that two versions of us can share a Redis during an upgrade."""
PATIENCE_SECONDS: Final = 1.0
"""How long a reader waits for Redis to answer."""
ANSWER_SECONDS: Final = 3.0
"""How long a writer does, whom nobody waits for."""
_BLOCK_SECONDS: Final = 1.0
"""How long a command waits at Redis: less than a client's time-out, whoever has made it."""
_PAUSE_SECONDS: Final = 0.5
"""How long nobody asks behind a failure."""
_FORGETFUL_SECONDS: Final = 2.0
_ASKED_AT_ONCE: Final = 32
_CONNECTIONS: Final = 8
_INBOX_LENGTH: Final = 10_000
CLUSTER: Final = "redis+cluster://"
_OF_AN_ADDRESS: Final = ("host", "port", "db", "username", "password", "cred", "ssl", "unix")


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


class Link:
    """The link of one event loop to Redis.

    Args:
        url: where it is, `""` where a client is given.
        client: the user's own client.
        keys: how keys are named.
        observers: who is told of failures.
        lease_seconds: within which time a process that has died is known to be dead.

    Attributes:
        process: a name for this process and loop, which nobody can guess.
        lease_milliseconds: how long its lease is good for.
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
        self.lease_milliseconds = int(lease_seconds * 600)  # the rest is for doubts
        self._client: AnyRedis = client_for(url) if client is None else client
        self._is_ours = client is None
        self._url = url
        self._observers = observers
        self._rests_until = 0.0
        self._failed_at = -math.inf
        self._lease: _Lease | None = None
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

    async def write(self, commands: Iterable[Command], *, atomic: bool) -> list[Any]:
        """Have Redis do something, all of it or nothing where it is `atomic`.

        Returns:
            The answers, an exception where one was refused.

        Raises:
            Exception: one of `FAILURES`; the outcome is unknown.
        """
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._pipe(commands, atomic=atomic)

    @property
    def may_be_forgetful(self) -> bool:
        """Whether Redis may have been emptied a moment ago, and not have all again so far."""
        return time.monotonic() < self._failed_at + _FORGETFUL_SECONDS

    @property
    def is_cluster(self) -> bool:
        """Whether what is atomic has to be of one stream."""
        return isinstance(self._client, RedisCluster)

    async def read_inbox(self, place: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
        """Wait a while for messages behind `place`.

        Raises:
            Exception: one of `FAILURES`.
        """
        inbox = self.keys.inbox(self.process)
        async with asyncio.timeout(_BLOCK_SECONDS + PATIENCE_SECONDS):
            answer = await self._client.xread({inbox: place}, block=int(_BLOCK_SECONDS * 1000))
        return _messages(answer)

    def message_to(self, process: str, words: str) -> Command:
        """Return the command that puts a message into the inbox of a process, if it has one."""
        inbox = self.keys.inbox(process)
        bounds = ("NOMKSTREAM", "MAXLEN", "~", _INBOX_LENGTH)
        return ("XADD", inbox, *bounds, "*", "p", self.process, "w", words)

    def lease_command(self) -> Command:
        """Return the command that says once that this process lives."""
        return ("SET", self.keys.lease(self.process), "1", "PX", self.lease_milliseconds)

    def failed(self, operation: str, exc: BaseException) -> None:
        """Take note that Redis did not do its work."""
        logger.debug("%s: %s", operation, type(exc).__name__)
        # What has refused this may do that, and one that waits proves nothing.
        if operation != "inbox" and not isinstance(exc, ResponseError):
            self._failed_at = time.monotonic()
            self._rests_until = self._failed_at + _PAUSE_SECONDS
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
            self._lease = _Lease(self, partial(_blocking_client, self._url, self._client))

    def renew_lease(self) -> None:
        """Say so again at once, for Redis may have forgotten."""
        if self._lease is not None:
            self._lease.hurry()

    async def close(self) -> None:
        """Let go of the lease and the connections."""
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
            while self._questions:
                asked = dict(islice(self._questions.items(), _ASKED_AT_ONCE))
                for command in asked:
                    del self._questions[command]
                async with asyncio.timeout(PATIENCE_SECONDS):
                    answers = await self._pipe(asked, atomic=False)
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

    async def _pipe(self, commands: Iterable[Command], *, atomic: bool) -> list[Any]:
        pipe = self._client.pipeline(transaction=atomic)
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))


class _Lease:
    """Renew a lease in a thread of its own: a blocked event loop is not a dead one."""

    def __init__(self, link: Link, connect: Callable[[], Any]) -> None:
        self._connect = connect  # that of a cluster waits for an answer
        self._client: Any = None
        self._lease = link.keys.lease(link.process)
        self._inbox = link.keys.inbox(link.process)
        self._milliseconds = link.lease_milliseconds
        self._pause = link.lease_seconds / 8
        self._loop = asyncio.get_running_loop()
        self._poked = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="sse_middleware lease", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Renew it now."""
        self._poked.set()

    async def stop(self) -> None:
        """Give it back."""
        self._stopped = True
        self._poked.set()
        await self._loop.run_in_executor(None, self._thread.join, ANSWER_SECONDS)

    def _run(self) -> None:
        while not (self._stopped or self._loop.is_closed()):
            self._poked.clear()
            self._try(self._renew)
            self._poked.wait(self._pause)
        if self._client is not None:
            self._try(self._give_back)
            self._client.close()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            if self._client is None:
                self._client = self._connect()
            call()
        except FAILURES as exc:
            logger.debug("the lease: %s", type(exc).__name__)

    def _renew(self) -> None:
        # PEXPIRE, since a Redis that is full refuses SET.
        with self._client.pipeline(transaction=False) as pipe:
            pipe.pexpire(self._lease, self._milliseconds)
            pipe.pexpire(self._inbox, 4 * self._milliseconds)
            if all(pipe.execute()):
                return
        with self._client.pipeline(transaction=True) as pipe:
            pipe.set(self._lease, 1, px=self._milliseconds)
            pipe.xadd(self._inbox, {"w": "hello"})
            pipe.pexpire(self._inbox, 4 * self._milliseconds)
            pipe.execute()

    def _give_back(self) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            pipe.delete(self._lease)
            pipe.delete(self._inbox)
            pipe.execute()


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


def client_for(url: str) -> AnyRedis:
    """Return a client of ours for an event loop."""
    options: dict[str, Any] = {
        "socket_connect_timeout": PATIENCE_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "retry": Retry(NoBackoff(), 0),  # who asks knows what to do
    }
    if url.startswith(CLUSTER):
        return RedisCluster.from_url("redis://" + url.removeprefix(CLUSTER), **options)
    return Redis.from_pool(
        BlockingConnectionPool.from_url(
            url, max_connections=_CONNECTIONS, timeout=PATIENCE_SECONDS, **options
        )
    )


def _blocking_client(url: str, client: AnyRedis) -> Any:
    """Return a client for a thread, to the same Redis."""
    options: dict[str, Any] = {
        "socket_connect_timeout": PATIENCE_SECONDS,
        "socket_timeout": PATIENCE_SECONDS,
        "retry": ThreadRetry(NoBackoff(), 0),
    }
    if url.startswith(CLUSTER):
        return redis.RedisCluster.from_url("redis://" + url.removeprefix(CLUSTER), **options)
    if url:
        return redis.Redis.from_url(url, **options)
    if isinstance(client, RedisCluster):
        node = client.get_default_node()
        return redis.RedisCluster(host=str(node.host), port=int(node.port), **options)
    pool = client.connection_pool
    given = {**pool.connection_kwargs, "ssl": issubclass(pool.connection_class, SSLConnection)}
    given["unix_socket_path"] = given.get("path")
    known = inspect.signature(redis.Redis).parameters
    options |= {
        name: value
        for name, value in given.items()
        if value is not None and name in known and name.startswith(_OF_AN_ADDRESS)
    }
    return redis.Redis(**options)
