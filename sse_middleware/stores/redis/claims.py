"""The claims of one event loop to names: of streams that may open, while their apps run.

A claim expires soon after its process has died, so it is renewed as long as it is held. It ends
when the log of its stream is registered under the name; see `LogWriter`.
"""

import asyncio
from contextlib import suppress
from typing import Final

from sse_middleware.errors import StoreError
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.scripts import Command, claim, milliseconds, release

CLAIM_SECONDS: Final = 6.0
"""How long a claim outlives its process."""


class Claims:
    """Take, renew and release claims.

    Args:
        client: sends commands.
    """

    def __init__(self, client: CommandClient) -> None:
        self._client = client
        self._held: dict[str, str] = {}  # by the digest of the name
        self._released: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def take(self, name: str, stream_id: str) -> str:
        """Claim a name for a stream, and return the stream that has the claim.

        Raises:
            StoreError: Redis is out of reach. The claim may have been taken, and then expires.
        """
        await self._client.load_secret()
        (answer,) = await self._client.query("claim", self._claim(name, stream_id))
        holder: str = answer.decode("ascii", "replace")
        if holder == stream_id:
            self._held[name] = stream_id
            self._start()
        return holder

    async def holder(self, name: str) -> str | None:
        """Return the stream that has the claim to a name, `None` if none has.

        Raises:
            StoreError: Redis is out of reach.
        """
        await self._client.load_secret()
        (answer,) = await self._client.query("claim", ("GET", self._key(name)))
        return None if answer is None else answer.decode("ascii", "replace")

    def settle(self, name: str, stream_id: str) -> None:
        """Give up a claim, if it is held, because readers find the log of its stream by the name.

        Not earlier: a reader takes a claim without a log for one whose stream has not opened.
        """
        if self._held.get(name) == stream_id:
            self.release(name, stream_id)

    def release(self, name: str, stream_id: str) -> None:
        """Give up a claim soon, or let it expire if Redis is out of reach."""
        if self._held.get(name) == stream_id:
            del self._held[name]
        self._released[name] = stream_id
        self._changed.set()
        self._start()

    async def close(self) -> None:
        """Give up all claims."""
        self._released |= self._held
        self._held.clear()
        self._changed.set()
        if self._task is not None:
            await self._task

    def _start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Renew the claims that are held, and release others, as long as there are any."""
        try:
            while self._held or self._released:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLAIM_SECONDS / 3):
                        await self._changed.wait()
                self._changed.clear()
                released, self._released = self._released, {}
                commands = [self._claim(*held) for held in self._held.items()]
                commands += [release(self._key(name), of) for name, of in released.items()]
                if commands:
                    with suppress(StoreError):  # it is reported
                        await self._client.query("claim", *commands)
        finally:
            self._task = None

    def _claim(self, name: str, stream_id: str) -> Command:
        return claim(self._key(name), milliseconds(CLAIM_SECONDS), stream_id)

    def _key(self, name: str) -> str:
        return self._client.keys.claim(self._client.seal(name))
