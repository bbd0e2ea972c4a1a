"""The interface of the observers of streams, such as metrics and logs.

An observer is notified when a stream opens, every ten seconds or so and at the end, but not of each
event. The record has all the numbers; an observer that counts remembers what it has counted.
"""

from typing import Protocol

from sse_middleware.observability.stream_record import StreamRecord


class Observer(Protocol):
    """An observer of streams. No method may wait, block or raise."""

    def opened(self, record: StreamRecord) -> None:
        """A response is a stream, and has started."""

    def progressed(self, record: StreamRecord) -> None:
        """A stream is still open; its counters have grown since the last call."""

    def stalled(self, record: StreamRecord, seconds: float) -> None:
        """A client that did not read has blocked a write for `seconds`."""

    def ended(self, record: StreamRecord) -> None:
        """A stream has ended, as `record.outcome` describes; called once."""

    def resumed(self, route: str, result: str, replayed: int) -> None:
        """A request with an event id of ours has its response.

        Args:
            route: the bounded name of the stream's route.
            result: `resumed`, `truncated`, `gone`, `ended`, `cancelled` or `unavailable`; or, for a
                request that is attached to the stream of another one, `coalesced` or `hit`.
            replayed: the number of missed events that the client is sent.
        """

    def lingering(self, more: int) -> None:
        """One stream more lingers (1), or one less (-1)."""

    def rejected(self, route: str, reason: str) -> None:
        """A stream has been rejected.

        Args:
            route: the bounded name of its route.
            reason: the limit that is reached (`process`, `client`, `rate` or `readers`), or
                `shutdown`.
        """

    def on_end_failed(self, route: str) -> None:
        """The function `on_end` of a mark has failed; `route` is the bounded name of its route."""

    def store_failed(self, operation: str) -> None:
        """The store is unavailable; `operation` is one of a few words."""

    def health_changed(self, component: str, name: str, state: str, more: int) -> None:
        """One component more (1) or less (-1) of the access to the store is in a state.

        Args:
            component: `connection`, `circuit` or `listener`.
            name: its purpose: `store` or `channels`; of a circuit, the operation.
            state: `open` for a connection and a circuit, `up` or `down` for a listener.
            more: 1 or -1.
        """

    def store_flushed(self, seconds: float) -> None:
        """Events have been written to the store in `seconds`."""
