"""A response that we have given in place of the app's: whatever the app still says is dropped."""

from starlette.types import Message

from sse_middleware.stream.owner import Owner


class DiscardedResponse:
    """Stand where the outbox of a stream would, that was not let in.

    Args:
        owner: runs the app.
    """

    __slots__ = ("_owner",)

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    async def write(self, _: Message) -> None:
        """Drop a message of the app."""
        await self._owner.on_late_write()

    def fail(self) -> bool:
        """Say that there is nothing that could fail."""
        return False

    def client_left(self) -> bool:
        """Say that the app may know."""
        return False

    @property
    def drains(self) -> bool:
        """Say that there is nothing to hurry for."""
        return False

    def abort(self) -> None:
        """End nothing."""

    def app_waits(self) -> bool:
        """Say that no write is under way."""
        return False

    async def until_over(self) -> None:
        """Return at once."""

    async def settle(self, patience: float, outcome: str) -> None:
        """Leave nothing behind: there is nothing."""
