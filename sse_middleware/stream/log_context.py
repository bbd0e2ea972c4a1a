"""The trace id and the stream id of the current request, for the log lines of the app itself."""

import logging
from collections.abc import MutableMapping
from typing import Any

from sse_middleware.stream.current import CURRENT, current_in


class StreamLogFilter(logging.Filter):
    """Add `trace_id` and `stream_id` to each log record that is made in a request.

    Add it to a handler, so that it sees the records of all loggers. Outside of a request, and for
    the stream id before the response is a stream, the value is `""`, so that a format string may
    have these fields. A value that is on the record already, from a log record factory or `extra`,
    is kept.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields, and let the record pass."""
        for name, value in _ids().items():
            if not getattr(record, name, ""):
                setattr(record, name, value)
        return super().filter(record)


def add_stream_context(
    _logger: object, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add `trace_id` and `stream_id` to an event of structlog; a processor.

    Outside of a request there are none. A value that the event has already is kept.
    """
    for name, value in _ids().items():
        if value and not event_dict.get(name):
            event_dict[name] = value
    return event_dict


def _ids() -> dict[str, str]:
    cell = CURRENT.get()
    if cell is None:
        return {"trace_id": "", "stream_id": ""}
    current = current_in(cell)
    return {"trace_id": current.trace_id, "stream_id": current.known_stream_id}
