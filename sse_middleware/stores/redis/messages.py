"""The messages of this process to the inboxes of other processes."""

import asyncio
import logging
from collections.abc import Callable

from redis.exceptions import ResponseError

from sse_middleware.errors import StoreError
from sse_middleware.stores.redis.commands import CommandClient
from sse_middleware.stores.redis.refusals import is_final

logger = logging.getLogger("sse_middleware")


class MessageSender:
    """Send messages, those to one process together.

    Args:
        client: sends commands.
        on_refused: is called if Redis takes no writes at the moment.

    Attributes:
        refusal: the error with which Redis has refused the last message, `None` if it has not.
    """

    def __init__(self, client: CommandClient, on_refused: Callable[[], None]) -> None:
        self._client = client
        self._on_refused = on_refused
        self._messages: dict[str, list[str]] = {}  # to be sent, by process
        self._task: asyncio.Task[None] | None = None
        self.refusal: ResponseError | None = None

    def enqueue(self, process: str, kind: str, stream_id: str) -> None:
        """Send a message to another process soon; it is lost if Redis is out of reach."""
        self._messages.setdefault(process, []).append(f"{kind} {stream_id}")
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def wait(self) -> None:
        """Wait until all messages are sent."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        try:
            while self._messages:
                messages, self._messages = self._messages, {}
                commands = [
                    self._client.message_command(process, " ".join(words))
                    for process, words in messages.items()
                ]
                try:
                    await self._client.query("send", *commands)
                    self.refusal = None
                except StoreError as exc:
                    logger.debug("messages to other processes are lost: %s", exc)
                    self._on_failure(exc.__cause__)
        finally:
            self._task = None

    def _on_failure(self, cause: BaseException | None) -> None:
        if isinstance(cause, ResponseError) and not is_final(cause):
            self.refusal = cause
            self._on_refused()
