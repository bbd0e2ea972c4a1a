"""Leases: the slots of each client on all workers together, in Redis.

A slot has a lease, which its process renews; it expires if the process has died. An opening sends
one request to Redis, which the circuit breaker bounds in time.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoScriptError

from sse_middleware.limits.slots import Slot, SlotPool
from sse_middleware.stores.base import seal_identity
from sse_middleware.stores.circuit_breaker import (
    CALL_TIMEOUT_SECONDS,
    FIRST_CALL_TIMEOUT_SECONDS,
    OPEN_SECONDS,
    CircuitBreaker,
)
from sse_middleware.stores.redis.client import FAILURES, client_for, close_client, send_all
from sse_middleware.stores.redis.commands import QueryCoalescer
from sse_middleware.stores.redis.keys import Keys
from sse_middleware.stores.redis.scripts import Command, Script, load_script, milliseconds
from sse_middleware.stores.redis.shared_secret import SharedSecret

logger = logging.getLogger("sse_middleware")

LEASE_SECONDS = 20.0
"""How long the lease of a process that has died is kept."""
_RENEWALS: Final = 4
"""How often a lease is renewed in that time."""
_MAX_BATCH: Final = 64
"""The most clients in one pipeline."""


class Leases:
    """The leases of one event loop.

    Args:
        url: of Redis.
        prefix: of all Redis keys.
        slots: the slots that have leases.
        max_per_client: the most leases of one client.
        breaker: sends the requests for new leases.
        on_client: gets the client before it connects.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        slots: SlotPool,
        max_per_client: int,
        breaker: CircuitBreaker,
        *,
        on_client: Callable[[object], None] | None = None,
    ) -> None:
        self._client: Any = client_for(url)
        if on_client is not None:
            on_client(self._client)
        self._keys = Keys(prefix)
        self._secret = SharedSecret(self._keys.secret(), partial(send_all, self._client))
        self._slots = slots
        self._max_per_client = max_per_client
        self._breaker = breaker
        self._process = secrets.token_hex(8)
        self._milliseconds = milliseconds(LEASE_SECONDS)
        self._take_script = load_script("sse_middleware.limits", "lease_take")
        self._keep_script = load_script("sse_middleware.limits", "lease_keep")
        send = partial(self._run_all, self._take_script)
        self._queries = QueryCoalescer(
            send,
            FIRST_CALL_TIMEOUT_SECONDS,
            lambda _: None,  # the breaker reports it for each caller
            breaker,
        )
        self._held: dict[str, dict[Slot, _Member]] = {}
        self._dropped: dict[str, list[_Member]] = {}
        self._members: dict[Slot, _Member] = {}
        self._has_dropped = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def take(self, slot: Slot, evict: str) -> int | None:
        """Request a lease.

        Args:
            slot: the slot; its client is known.
            evict: the leases that may be taken from their owners for it: `nobody` (none), `e` (of
                streams that can send an event about it) or `any`.

        Returns:
            The number of leases of its client with this one, `None` if the lease is refused.

        Raises:
            StoreError: Redis is out of reach; it is not known whether there is a lease.
        """
        client, member = str(slot.client), self._member(slot)
        arguments = (self._milliseconds, str(self._max_per_client), evict, *member.words())

        async def take() -> Any:
            await self._secret.load()
            return await self._queries.query(
                self._take_script.call(self._keys_of(client), *arguments)
            )

        count, *lost = await self._breaker.call(take)
        self._evict(lost)
        if count < 0:
            self._members.pop(slot, None)  # there is no lease to give back
            return None
        return int(count)

    def hold(self, slot: Slot) -> None:
        """Renew a lease from now on."""
        if slot.client is not None:
            self._held.setdefault(slot.client, {})[slot] = self._member(slot)
            self._start()

    def drop(self, slot: Slot) -> None:
        """Give a lease back soon; it may be unknown whether there is one."""
        member = self._members.pop(slot, None)
        if slot.client is None or member is None:
            return
        held = self._held.get(slot.client, {})
        held.pop(slot, None)
        if not held:
            self._held.pop(slot.client, None)
        self._dropped.setdefault(slot.client, []).append(member)
        self._has_dropped.set()
        self._start()

    async def close(self) -> None:
        """Give all leases back, and close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._queries.close()
        for slot in [slot for held in self._held.values() for slot in held]:
            self.drop(slot)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_SECONDS):
                await self._renew(list(self._dropped))
        except FAILURES as exc:
            logger.debug("leases are not given back, and expire: %s", type(exc).__name__)
        finally:
            if self._task is not None:
                self._task.cancel()
            await close_client(self._client)

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Renew leases regularly, and give others back at once, while there are any."""
        renewed_at = succeeded_at = time.monotonic()
        interval = LEASE_SECONDS / _RENEWALS
        while self._held or self._dropped or self._slots.lingering_clients():
            self._has_dropped.clear()
            clients = set(self._dropped)
            if time.monotonic() >= renewed_at + interval:
                clients |= {*self._held, *self._slots.lingering_clients()}
                renewed_at = time.monotonic()
                self._secret.expire()
            try:
                async with asyncio.timeout(interval):
                    await self._renew(clients)
                self._breaker.succeeded()
                succeeded_at = time.monotonic()
            except FAILURES as exc:
                self._breaker.failed(exc)
                if time.monotonic() > succeeded_at + LEASE_SECONDS:
                    self._dropped.clear()  # they have expired
                await asyncio.sleep(OPEN_SECONDS)
                continue
            try:
                async with asyncio.timeout(max(0.0, renewed_at + interval - time.monotonic())):
                    await self._has_dropped.wait()
            except TimeoutError:
                continue

    async def _renew(self, clients: Iterable[str]) -> None:
        remaining = iter(clients)
        await self._secret.load()
        while batch := list(islice(remaining, _MAX_BATCH)):
            members = {client: self._members_of(client) for client in batch}
            # A lease whose request was cancelled may be taken only now; it is given back after it.
            await self._queries.wait_for_sent()
            commands = [
                self._keep_script.call(
                    self._keys_of(client),
                    self._milliseconds,
                    str(len(held)),
                    *(word for member in (*held, *dropped) for word in member.words()),
                )
                for client, (held, dropped) in members.items()
            ]
            answers = await self._run_all(self._keep_script, commands)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            for client, (count, *lost) in zip(members, answers, strict=True):
                _, dropped = members[client]
                later = self._dropped.get(client, [])[len(dropped) :]
                self._dropped[client] = later
                if not later:
                    del self._dropped[client]
                self._evict(lost)
                self._slots.trim(client, count - len(self._held.get(client, ())))

    def _keys_of(self, client: str) -> tuple[str, str, str]:
        return self._keys.client_leases(seal_identity(client, self._secret.value))

    def _members_of(self, client: str) -> "tuple[list[_Member], list[_Member]]":
        return list(self._held.get(client, {}).values()), list(self._dropped.get(client, ()))

    async def _run_all(self, script: Script, commands: Sequence[Command]) -> list[Any]:
        """Run a script several times; an answer is an exception if Redis refuses the command."""
        if isinstance(self._client, RedisCluster):  # each command is for a node of its own
            return [await self._run_one(script, command) for command in commands]
        pipe = self._client.pipeline(transaction=False)
        pipe.script_load(script.text)
        for command in commands:
            pipe.execute_command(*command)
        return list(await pipe.execute(raise_on_error=False))[1:]

    async def _run_one(self, script: Script, command: Command) -> Any:
        try:
            return await self._client.execute_command(*command)
        except NoScriptError:
            return await self._client.execute_command(*script.with_text(command))

    def _member(self, slot: Slot) -> "_Member":
        """Return the name of a slot in Redis, which begins with its kind."""
        if slot not in self._members:
            kind = "e" if slot.reads_end else "p"
            name = f"{kind}:{self._process}:{slot.number}"
            self._members[slot] = _Member(name, time.monotonic())
        return self._members[slot]

    def _evict(self, lost: Iterable[bytes]) -> None:
        names = {name.decode() for name in lost}
        if names:
            for slot in [slot for slot, one in self._members.items() if one.name in names]:
                slot.evict()


class _Member(NamedTuple):
    """A slot, as Redis has it.

    Attributes:
        name: its name.
        taken_at: the time at which it was taken, by the clock of this process.
    """

    name: str
    taken_at: float

    def words(self) -> tuple[str, str]:
        """Return its name, and its age in milliseconds, which is the same by each clock."""
        return self.name, str(int((time.monotonic() - self.taken_at) * 1000))
