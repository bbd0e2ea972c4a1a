"""A response that we have given in place of the app's: whatever the app still says is dropped."""

from starlette.types import Message

from sse_middleware.stream.callbacks import NO_CALLBACKS, StreamCallbacks


class DiscardedResponse:
    """Stand where the outbox of a stream would, that was not let in.

    Args:
        owner: runs the app.
    """

    __slots__ = ("_callbacks",)

    def __init__(self, callbacks: StreamCallbacks) -> None:
        self._callbacks = callbacks

    async def write(self, _: Message) -> None:
        """Drop a message of the app."""
        await self._callbacks.on_write_after_end()

    def fail(self) -> bool:
        """Say that there is nothing that could fail."""
        return False

    def on_disconnect(self) -> bool:
        """Say that the app may know."""
        return False

    @property
    def is_draining(self) -> bool:
        """Say that there is nothing to hurry for."""
        return False

    def abort(self) -> None:
        """End nothing."""

    def is_app_writing(self) -> bool:
        """Say that no write is under way."""
        return False

    async def wait_until_ended(self) -> None:
        """Return at once."""

    async def aclose(self, grace_seconds: float, outcome: str) -> None:  # noqa: ARG002
        """Release the app's runner, which has a reference to this object."""
        self._callbacks = NO_CALLBACKS
