"""Other objects end a stream: the limits, the queue of lingering streams, and the drain.

The limits and that queue are shared by the event loops of a process, so their methods may be called
in any thread; they act in the event loop of the stream.
"""

from typing import TYPE_CHECKING

from sse_middleware.protocol.producer_state import ProducerAction, ProducerInput, ProducerPhase
from sse_middleware.stream.timers import LoopTimers

if TYPE_CHECKING:
    from sse_middleware.stream.linger_index import RequestKey
    from sse_middleware.stream.producer import Producer


class ProducerControl:
    """End the stream of one producer.

    Args:
        producer: the producer.
        timers: the timers of its event loop.

    Attributes:
        client: the identity of the client if the stream is kept, or else its address.
        request_key: the request that has opened the stream, `None` if it cannot be recognized.
    """

    __slots__ = ("_producer", "_timers", "client", "request_key")

    def __init__(self, producer: "Producer", timers: LoopTimers) -> None:
        self._producer = producer
        self._timers = timers
        self.client = ""
        self.request_key: RequestKey | None = None

    def evict(self) -> None:
        """End the stream because its slot is needed, without an end if no client reads it."""
        self._timers.call(self._evict)

    def expire(self) -> None:
        """End a stream if it lingers."""
        self._timers.call(self._expire)

    def watch_for_disconnect(self) -> None:
        """Make sure that a disconnect of the client is received."""
        self._timers.call(self._producer.callbacks.watch_for_disconnect)

    def blocked_at(self) -> int | None:
        """Return the bytes sent before the write in progress, `None` if there is no write."""
        return self._producer.connection.blocked_at()

    def stop_if_left(self) -> None:
        """Stop an app that has not noticed that its client has left, as at the cap."""
        is_raw = self._producer.writer.intake.is_raw  # as without a mark
        if self._producer.phase is ProducerPhase.LEFT and not is_raw:
            self._producer.move(ProducerInput.CAP)

    @property
    def drain_seconds(self) -> float:
        """How long the stream may continue when its server shuts down."""
        return self._producer.profile.options.drain_seconds

    def on_drain(self) -> None:
        """Disconnect the client if it can follow on another worker; the app continues."""
        producer = self._producer
        connection = producer.connection
        producer.report.record.note("drain")
        if producer.phase is ProducerPhase.DETACHED:
            producer.start_lingering()  # until the drain is over
        elif (
            producer.log.is_shared
            and producer.may_return()
            and connection.dialect.reads_control_events
        ):
            connection.dialect.prepare_to_drain()
            producer.rotate(self._timers.clock())

    def on_drain_over(self) -> bool:
        """End the stream, because the server waits for nothing else."""
        is_cut = self._producer.phase in (ProducerPhase.OPEN, ProducerPhase.DETACHED)
        if self._producer.move(ProducerInput.DRAIN_IS_OVER) is ProducerAction.IGNORE:
            self._producer.connection.give_up()
        return is_cut

    def _evict(self) -> None:
        if not self._expire():
            self._producer.move(ProducerInput.EVICT)

    def _expire(self) -> bool:
        """End the stream if it lingers, and return whether it does.

        A client may have resumed it meanwhile, if the call is from another event loop.
        """
        producer = self._producer
        lingers = producer.phase is ProducerPhase.DETACHED and not producer.log.has_readers
        if lingers:
            producer.move(ProducerInput.LINGER_IS_OVER)
        return lingers
