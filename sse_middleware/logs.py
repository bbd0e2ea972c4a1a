"""Logs: one structured record for each stream that has ended, and never a payload or a cursor."""

import logging

from sse_middleware.record import StreamRecord

logger = logging.getLogger("sse_middleware.stream")


class StreamLog:
    """Write the record of each ended stream, with its numbers as fields of the log record."""

    def opened(self, record: StreamRecord) -> None:
        """Say at DEBUG that a stream has begun."""
        logger.debug("stream %s of route %s opened", record.stream_id, record.route)

    def progressed(self, record: StreamRecord) -> None:
        """Say nothing."""

    def stalled(self, record: StreamRecord, seconds: float) -> None:
        """Say at DEBUG that a client did not read for a while."""
        logger.debug("a write of stream %s took %.3f s", record.stream_id, seconds)

    def ended(self, record: StreamRecord) -> None:
        """Write the record, at INFO."""
        if not logger.isEnabledFor(logging.INFO):
            return
        logger.info(
            "stream %s of route %s: %s after %.3f s, %d events",
            record.stream_id,
            record.route,
            record.outcome,
            record.duration_seconds,
            record.chunks,
            extra={
                "stream_id": record.stream_id,
                "trace_id": record.trace_id,
                "route": record.route,
                "family": record.family,
                "outcome": record.outcome,
                "duration_seconds": record.duration_seconds,
                "time_to_first_event_seconds": record.first_event_seconds,
                "chunks": record.chunks,
                "tokens": record.tokens,
                "sent_bytes": record.sent_bytes,
                "heartbeats": record.heartbeats,
                "annotations": dict(record.annotations or {}),
            },
        )
