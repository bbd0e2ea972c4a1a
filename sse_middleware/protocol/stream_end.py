"""The end of a stream: its reason, and the data from which each client receives its own form.

The log keeps it as JSON. Each connection writes it in the form of its client kind.
"""

import enum
import json
import math
from typing import Any, Final, NamedTuple

from sse_middleware.errors import StoreError


class Reason(enum.StrEnum):
    """Why a stream, or a connection that follows its log, has ended."""

    FINISHED = "finished"
    DURATION_CAP = "duration_cap"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"
    EVICTED = "evicted"
    """Its slot was needed for another stream."""
    ERROR = "error"
    INCOMPLETE = "incomplete"
    """The app has returned without the end of its response."""
    LOST = "lost"
    """The producer is gone."""
    GONE = "gone"
    """The log is gone, or no client has resumed the stream in time."""
    UNAVAILABLE = "unavailable"
    """The store cannot be reached."""


_OUTCOMES: Final = {reason: reason.value for reason in Reason} | {
    Reason.GONE: "disconnected",
    Reason.LOST: "aborted",
}
_BOOLEANS: Final = ("false", "true")


class StreamEnd(NamedTuple):
    """The end of a stream.

    Attributes:
        reason: why it has ended.
        trace_id: the trace id of the request that the app has handled: of characters that JSON does
            not escape.
        duration: how long it was open, in seconds.
        chunks: the number of events of the app.
        tokens: the tokens that the app has counted.
        tail: the bytes of the app after its last event; they are no event.
        is_inside_event: whether a part of an event has been sent that is not complete.
        has_own_end: whether the app itself has sent the last event (`complete`, `error`, `[DONE]`).
        first_chunk: the first chat completion chunk of a stream in OpenAI's dialect, else `None`.
    """

    reason: Reason
    trace_id: str = ""
    duration: float = 0.0
    chunks: int = 0
    tokens: int = 0
    tail: bytes = b""
    is_inside_event: bool = False
    has_own_end: bool = False
    first_chunk: dict[str, Any] | None = None

    def pack(self) -> bytes:
        """Serialize the end for a log; `b""` if no client receives anything at it."""
        if self.has_own_end and self.reason is Reason.FINISHED and not self.tail:
            return b""
        # Formatted here, because `json` takes longer than the rest of an end.
        tail = json.dumps(self.tail.decode("latin-1")) if self.tail else '""'
        chunk = "null" if self.first_chunk is None else json.dumps(self.first_chunk)
        return (
            f'{{"reason":"{self.reason}","trace_id":"{self.trace_id}",'
            f'"duration":{self.duration},"chunks":{self.chunks},"tokens":{self.tokens},'
            f'"tail":{tail},"is_inside_event":{_BOOLEANS[self.is_inside_event]},'
            f'"has_own_end":{_BOOLEANS[self.has_own_end]},"first_chunk":{chunk}}}'
        ).encode()


def outcome_of(reason: Reason, *, is_lost: bool) -> str:
    """Return how a stream has ended, in the word of metrics and logs.

    Args:
        reason: the reason.
        is_lost: whether clients learn that the producer is lost.
    """
    return "aborted" if is_lost else _OUTCOMES[reason]


def unpack_end(data: bytes, reason: Reason) -> StreamEnd:
    """Parse the result of `StreamEnd.pack`.

    Args:
        data: the end as the log keeps it, `b""` if it has none.
        reason: the reason if the log has no end.

    Raises:
        StoreError: another version, or another program, has written it.
    """
    if not data:
        return StreamEnd(reason, has_own_end=reason is Reason.FINISHED)
    try:
        fields = json.loads(data)
        tail = fields.pop("tail").encode("latin-1")
        end = StreamEnd(Reason(fields.pop("reason")), tail=tail, **fields)
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as exc:
        raise StoreError("the end of a stream was written by another version") from exc
    if not _is_allowed(end):
        raise StoreError("the end of a stream was written by another program")
    return end


def _is_allowed(end: StreamEnd) -> bool:
    """Return whether the fields of an end have their types, and text that JSON does not escape."""
    text, chunk = end.trace_id, end.first_chunk
    return (
        isinstance(text, str)
        and json.dumps(text) == f'"{text}"'
        and type(end.duration) in (int, float)
        and 0 <= end.duration < math.inf
        and type(end.chunks) is type(end.tokens) is int
        and type(end.is_inside_event) is type(end.has_own_end) is bool
        and (chunk is None or isinstance(chunk, dict))
    )
