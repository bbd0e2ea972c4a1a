"""Logs: one structured record for each stream that has ended, without payloads or event ids.

The fields are in one attribute of the log record, `sse`: an app may have its own attributes, such
as a `trace_id` that its log record factory sets, and `logging` raises if one is set twice.
"""

import logging

from sse_middleware.observability.observer import guarded
from sse_middleware.observability.stream_record import StreamRecord

logger = logging.getLogger("sse_middleware.stream")

_STREAM = "stream %s of route %s: %s after %.3f s, %d events"
_READER = "stream %s of route %s, resumed: %s after %.3f s, %d events"


@guarded
class StreamLog:
    """Log each ended stream, with its numbers in the attribute `sse` of the log record."""

    def opened(self, record: StreamRecord) -> None:
        """Log the start of a stream, at DEBUG."""
        logger.debug("stream %s of route %s opened", record.stream_id, record.route)

    def progressed(self, record: StreamRecord) -> None:
        """Log nothing."""

    def stalled(self, record: StreamRecord, seconds: float) -> None:
        """Log a blocked write, at DEBUG."""
        logger.debug("a write of stream %s took %.3f s", record.stream_id, seconds)

    def ended(self, record: StreamRecord) -> None:
        """Log the record, at INFO."""
        if not logger.isEnabledFor(logging.INFO):
            return
        logger.info(
            _READER if record.resumed_after is not None else _STREAM,
            record.stream_id,
            record.route,
            record.outcome,
            record.duration_seconds,
            record.chunks,
            extra={
                "sse": {
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
                    "disconnects": record.disconnects,
                    "resumed_after": record.resumed_after,
                    "cache": record.cache or None,
                    "cache_hit": record.cache != "miss" if record.cache else None,
                    "annotations": dict(record.annotations or {}),
                    **({} if record.sources is None else record.sources.log_fields),
                }
            },
        )

    def resumed(self, route: str, result: str, replayed: int) -> None:
        """Log the result of a resume, at DEBUG."""
        logger.debug("resume on route %s: %s, %d events missed", route, result, replayed)

    def lingering(self, more: int) -> None:
        """Log nothing."""

    def rejected(self, route: str, reason: str) -> None:
        """Log a rejection without its client, at INFO."""
        logger.info(
            "stream of route %s rejected: %s",
            route,
            reason,
            extra={"sse": {"route": route, "reason": reason}},
        )

    def on_end_failed(self, route: str) -> None:
        """Log nothing: the failure has been logged with its cause."""

    def store_failed(self, operation: str) -> None:
        """Log a failure of the store, at DEBUG."""
        logger.debug("the store has failed: %s", operation)

    def health_changed(self, component: str, name: str, state: str, more: int) -> None:
        """Log nothing: failures are logged with their cause."""

    def store_flushed(self, seconds: float) -> None:
        """Log nothing."""
