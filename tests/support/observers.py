"""An observer that records what tests of one stream check."""

from sse_middleware.observability.stream_record import StreamRecord


class RecordingObserver:
    """Records the outcomes and the stalls.

    Attributes:
        outcomes: how streams have ended, in order.
        stalls: the durations of stalls in seconds.
    """

    def __init__(self) -> None:
        self.outcomes: list[str | None] = []
        self.stalls: list[float] = []

    def opened(self, record: StreamRecord) -> None:
        assert record.outcome is None

    def progressed(self, record: StreamRecord) -> None:
        assert record.outcome is None

    def stalled(self, record: StreamRecord, seconds: float) -> None:
        assert record.stream_id
        self.stalls.append(seconds)

    def ended(self, record: StreamRecord) -> None:
        self.outcomes.append(record.outcome)

    def resumed(self, route: str, result: str, replayed: int) -> None: ...

    def lingering(self, more: int) -> None: ...

    def rejected(self, route: str, reason: str) -> None: ...

    def on_end_failed(self, route: str) -> None: ...

    def store_failed(self, operation: str) -> None: ...

    def health_changed(self, component: str, name: str, state: str, more: int) -> None: ...

    def store_flushed(self, seconds: float) -> None: ...
