"""A request that was rejected at its response start: the app's messages are discarded."""

from starlette.types import Message

from sse_middleware.stream.callbacks import NO_CALLBACKS, StreamCallbacks


class DiscardedResponse:
    """Replace the producer of a stream that was not admitted.

    Args:
        callbacks: those of the object that runs the app.
    """

    __slots__ = ("_callbacks",)

    def __init__(self, callbacks: StreamCallbacks) -> None:
        self._callbacks = callbacks

    async def write(self, _: Message) -> None:
        """Discard a message of the app."""
        await self._callbacks.on_write_after_end()

    def on_app_raised(self) -> bool:
        """Return that no stream was open."""
        return False

    def on_app_cancelled(self) -> None:
        """Do nothing: no stream was open."""

    def on_disconnect(self) -> bool:
        """Return that the app receives the disconnect."""
        return False

    @property
    def is_draining(self) -> bool:
        """Return that the app gets the full grace period."""
        return False

    def is_app_writing(self) -> bool:
        """Return that no write is in progress."""
        return False

    async def wait_until_ended(self) -> None:
        """Return at once."""

    async def aclose(self, *, is_aborted: bool) -> None:  # noqa: ARG002
        """Release the object that runs the app, which has a reference to this one."""
        self._callbacks = NO_CALLBACKS
