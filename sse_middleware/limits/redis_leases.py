"""Leases: the shares of clients on all workers together, in Redis.

A place is a lease, which its process renews and which runs out by itself where the process has
died. Redis is asked once at an opening, and never waited for longer than `PATIENCE_SECONDS`.
"""

import asyncio
import importlib.resources
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from hashlib import sha1
from itertools import islice
from typing import Any, Final, NamedTuple

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import NoScriptError

from sse_middleware.limits.slots import Slot, SlotPool
from sse_middleware.stores.circuit_breaker import (
    FIRST_SECONDS,
    PATIENCE_SECONDS,
    REST_SECONDS,
    CircuitBreaker,
)
from sse_middleware.stores.redis.client import FAILURES, client_for
from sse_middleware.stores.redis.commands import SCHEMA

logger = logging.getLogger("sse_middleware")

LEASE_SECONDS = 20.0
"""How long the place of a process that has died is kept."""
_RENEWALS: Final = 4
"""How often a lease is renewed while it is good."""
_AT_ONCE: Final = 64


_Call = tuple[tuple[str, str], tuple[Any, ...]]  # the keys and arguments of a script


class Script(NamedTuple):
    """A script as Redis knows it."""

    text: str
    sha: str


def _script(name: str) -> Script:
    text = importlib.resources.files("sse_middleware.limits").joinpath("lua", name).read_text()
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


class Leases:
    """The leases of one event loop.

    Args:
        url: where Redis is.
        prefix: what stands before our keys.
        places: what they are leases of.
        most: how many one client may have.
        patience: asks.
    """

    def __init__(
        self, url: str, prefix: str, places: SlotPool, most: int, patience: CircuitBreaker
    ) -> None:
        self._client: Any = client_for(url)
        self._prefix = f"{prefix}{SCHEMA}:"
        self._places = places
        self._most = most
        self._patience = patience
        self._process = secrets.token_hex(8)
        self._milliseconds = int(LEASE_SECONDS * 1000)
        self._take, self._keep = _script("lease_take.lua"), _script("lease_keep.lua")
        self._held: dict[str, dict[Slot, str]] = {}
        self._dropped: dict[str, list[str]] = {}
        self._members: dict[Slot, str] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._questions: list[tuple[_Call, asyncio.Future[Any]]] = []
        self._asker: asyncio.Task[None] | None = None

    async def take(self, place: Slot, evict: str) -> int | None:
        """Ask for a lease.

        Args:
            place: what for; its client is known.
            evict: who may lose one for it: `nobody`, `e` (whose streams can tell it) or `any`.

        Returns:
            How many its client has with it, `None` where it gets none.

        Raises:
            StoreError: Redis is out of reach; whether there is a lease now is not known.
        """
        member = self._member(place)
        asked = (self._milliseconds, self._most, evict, member)
        keys = self._keys(str(place.client))
        count, *lost = await self._patience.ask(lambda: self._ask((keys, asked)))
        self._evict(lost)
        if count < 0:
            self._members.pop(place, None)  # there is nothing to give back
            return None
        return int(count)

    def hold(self, place: Slot) -> None:
        """Keep a lease from now on."""
        if place.client is not None:
            self._held.setdefault(place.client, {})[place] = self._member(place)
            self._work()

    def drop(self, place: Slot) -> None:
        """Give a lease back, soon, whether it is known that there is one or not."""
        member = self._members.pop(place, None)
        if place.client is None or member is None:
            return
        held = self._held.get(place.client, {})
        held.pop(place, None)
        if not held:
            self._held.pop(place.client, None)
        self._dropped.setdefault(place.client, []).append(member)
        self._news.set()
        self._work()

    async def close(self) -> None:
        """Give all leases back and let go of the connections."""
        tasks = [task for task in (self._task, self._asker) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for place in [place for held in self._held.values() for place in held]:
            self.drop(place)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._renew(list(self._dropped))
        except FAILURES as exc:
            logger.debug("leases are left to run out: %s", type(exc).__name__)
        finally:
            if self._task is not None:
                self._task.cancel()
            await self._client.aclose()

    def _ask(self, call: _Call) -> "asyncio.Future[Any]":
        """Return what will be the answer to a call of the script that takes a lease."""
        answer = asyncio.get_running_loop().create_future()
        self._questions.append((call, answer))
        if self._asker is None or self._asker.done():
            self._asker = asyncio.get_running_loop().create_task(self._ask_all())
        return answer

    async def _ask_all(self) -> None:
        """Ask what is to be asked, as much as there is at a time."""
        while self._questions:
            asked, self._questions = self._questions[:_AT_ONCE], self._questions[_AT_ONCE:]
            asked = [(call, answer) for call, answer in asked if not answer.done()]
            try:
                async with asyncio.timeout(FIRST_SECONDS):
                    got = await self._run_all(self._take, [call for call, _ in asked])
            except FAILURES as exc:
                got = [exc] * len(asked)
            for (_, answer), one in zip(asked, got, strict=True):
                if isinstance(one, BaseException) and not answer.done():
                    answer.set_exception(one)
                elif not answer.done():
                    answer.set_result(one)

    def _work(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def _go_on(self) -> None:
        """Renew leases from time to time and give others back at once, while there are any."""
        renewed_at = worked_at = time.monotonic()
        pause = LEASE_SECONDS / _RENEWALS
        while self._held or self._dropped or self._places.lingering_clients():
            self._news.clear()
            clients = set(self._dropped)
            if time.monotonic() >= renewed_at + pause:
                clients |= {*self._held, *self._places.lingering_clients()}
                renewed_at = time.monotonic()
            try:
                async with asyncio.timeout(pause):
                    await self._renew(clients)
                self._patience.worked()
                worked_at = time.monotonic()
            except FAILURES as exc:
                self._patience.failed(exc)
                if time.monotonic() > worked_at + LEASE_SECONDS:
                    self._dropped.clear()  # they have run out by themselves
                await asyncio.sleep(REST_SECONDS)
                continue
            try:
                async with asyncio.timeout(max(0.0, renewed_at + pause - time.monotonic())):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _renew(self, clients: Iterable[str]) -> None:
        left = iter(clients)
        while some := list(islice(left, _AT_ONCE)):
            asked = {client: self._asked(client) for client in some}
            calls = [
                (self._keys(client), (self._milliseconds, len(held), *held, *dropped))
                for client, (held, dropped) in asked.items()
            ]
            answers = await self._run_all(self._keep, calls)
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            for client, (count, *lost) in zip(asked, answers, strict=True):
                dropped = asked[client][1]
                rest = self._dropped.get(client, [])[len(dropped) :]
                self._dropped[client] = rest
                if not rest:
                    del self._dropped[client]
                self._evict(lost)
                self._places.trim(client, count - len(self._held.get(client, ())))

    def _asked(self, client: str) -> tuple[list[str], list[str]]:
        return list(self._held.get(client, {}).values()), list(self._dropped.get(client, ()))

    async def _run_all(self, script: Script, calls: Sequence[_Call]) -> list[Any]:
        """Call a script several times; an answer is an exception where it has failed."""
        if isinstance(self._client, RedisCluster):  # each call is for a node of its own
            return [await self._run(script, *call) for call in calls]
        pipe = self._client.pipeline(transaction=False)
        pipe.script_load(script.text)
        for keys, arguments in calls:
            pipe.evalsha(script.sha, len(keys), *keys, *arguments)
        return list(await pipe.execute(raise_on_error=False))[1:]

    async def _run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        try:
            return await self._client.evalsha(script.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._client.eval(script.text, len(keys), *keys, *arguments)

    def _keys(self, client: str) -> tuple[str, str]:
        tag = f"{self._prefix}{{limit:{client}}}"
        return f"{tag}:leases", f"{tag}:lost"

    def _member(self, place: Slot) -> str:
        """Return what stands for a place: its kind, and then what sorts by age."""
        if place not in self._members:
            kind = "e" if place.reads_end else "p"
            age = f"{time.time_ns() // 1_000_000:015d}"
            self._members[place] = f"{kind}{age}:{self._process}:{place.number}"
        return self._members[place]

    def _evict(self, lost: Iterable[bytes]) -> None:
        names = {name.decode() for name in lost}
        if names:
            for place in [place for place, name in self._members.items() if name in names]:
                place.evict()
