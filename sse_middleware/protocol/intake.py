"""Intake: the bytes of the app on their way to a client.

Events are counted. Those that need ids are numbered and recorded; all other bytes pass unchanged.
Bytes may be enqueued and processed together with the next ones, which costs less than to process
each message. Every method that returns bytes returns the pending ones first, so the order is kept.
"""

from typing import Any, Final, Protocol

from sse_middleware.config.options import Options
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol import openai
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.deadlines import Deadlines
from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.protocol.wire import (
    Kind,
    Splitter,
    add_line,
    add_trace_id,
    event_data,
    event_name,
    has_data,
    has_id,
    line_end,
)

_MANY = 1000
_ID_ENDS = [b"%d\n\n" % number for number in range(_MANY)]  # formatting one each time costs more
_NOTHING: Final[list[bytes]] = []  # shared by all streams without pending bytes; never changed


class Recording(Protocol):
    """Keeps the numbered events."""

    def append(self, first: int, *frames: bytes) -> None:
        """Keep the frames of the events from `first` on."""

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept."""

    def use_app_ids(self) -> None:
        """Keep nothing: the app sets its own ids."""


class Intake(Deadlines):
    """Process the bytes of one app, in any chunking, and return the bytes for its client.

    This is the half of a `StreamState` that handles bytes.

    Args:
        options: the settings, including those of the mark.
        terms: the terms of the stream.
        client_kind: the kind of the client.
        record: the numbers of the stream.
        secret: the secret of the stream, which its event ids contain; `""` for no ids.
        marked: whether the endpoint is marked.
        comment: the form of a heartbeat comment.
        app_ids: whether the app sets its own ids and the events are kept nevertheless.

    Attributes:
        app_owns_ids: whether the app has sent an id.
        options: the settings.
        pending: bytes that are enqueued.
        recording: keeps the numbered events; `None` if they are not kept.
    """

    __slots__ = (
        "_app_completed",
        "_app_ids",
        "_comment",
        "_first_chunk",
        "_id_prefix",
        "_line_end",
        "_marked",
        "_only_adds_ids",
        "_passes_all",
        "_splitter",
        "app_owns_ids",
        "options",
        "pending",
        "recording",
    )

    def __init__(
        self,
        options: Options,
        terms: StreamTerms,
        *,
        client_kind: ClientKind,
        record: StreamRecord,
        secret: str,
        marked: bool,
        comment: CommentForm,
        app_ids: bool = False,
    ) -> None:
        super().__init__(terms, client_kind=client_kind, record=record)
        self.options = options
        self.recording: Recording | None = None
        self.pending: list[bytes] = _NOTHING
        self._id_prefix = f"\nid: {secret}-".encode() if secret else b""
        self._splitter = Splitter(options.max_event_bytes)
        self._comment = comment
        self._line_end = b"\n"
        self._first_chunk: dict[str, Any] | None = None
        self._marked = marked
        self._app_ids = app_ids
        self.app_owns_ids = False
        self._app_completed = False
        self._only_adds_ids = client_kind is ClientKind.EVENTSOURCE and not (
            options.trace_in_data or app_ids
        )
        self._passes_all = client_kind is ClientKind.OFF

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Process bytes and return those that can be sent now."""
        if self.pending:
            return self.take_pending() + self.feed(chunk, now)
        return self._feed_usual(chunk, now) or b"".join(self.feed_parts(chunk, now))

    def _feed_usual(self, chunk: bytes, now: float) -> bytes:
        """Do the same as `feed` if all events are usual and none may end the stream."""
        count = self._splitter.count_usual(chunk)
        if not count:
            return b""
        if self._passes_all:
            pass
        elif self._only_adds_ids:
            if chunk.find(b"event:") >= 0 and chunk.find(b"complete") >= 0:
                return b""
            return self._number(chunk, count, now)
        elif self._first_chunk is None or self.options.trace_in_data or chunk.find(b"[DONE]") >= 0:
            return b""
        self.record.count_events(count, now)
        return chunk

    def enqueue(self, chunk: bytes, now: float) -> None:
        """Add bytes to process later.

        The caller may append more to `pending` for a few milliseconds; all count as received `now`.
        """
        self.pending = [chunk]
        self._written_at = now

    def take_pending(self) -> bytes:
        """Process the pending bytes and return those that can be sent now."""
        if not self.pending:
            return b""
        pending, self.pending = self.pending, _NOTHING
        now = self._written_at
        return self._feed_usual(b"".join(pending), now) or b"".join(
            [self.feed(chunk, now) for chunk in pending]
        )

    def feed_parts(self, chunk: bytes, now: float) -> list[bytes]:
        """Do the same as `feed`, and return each event separately."""
        chunk = bytes(chunk)
        parts = [pending] if (pending := self.take_pending()) else []
        for kind, data in self._splitter.feed(chunk):
            if kind is Kind.BLOCK:
                parts.append(self._process_block(data, now))
            elif kind is Kind.LAST_PART:
                number = self.record.count_events(1, now)  # has no id: its bytes are unchanged
                if self.recording is not None:
                    self.recording.skip(number)
                parts.append(data)
            elif kind is not Kind.BOM or not self._has_written_first():
                parts.append(data)
        if parts:
            self._written_at = now
        return parts

    def _has_written_first(self) -> bool:
        """Return whether bytes of the middleware precede those of the app."""
        return self.client_kind is ClientKind.EVENTSOURCE or self.record.heartbeats > 0

    def _number(self, chunk: bytes, count: int, now: float) -> bytes:
        """Add an id to each of the `count` usual events of `chunk`."""
        last = self.record.count_events(count, now)
        prefix, recording = self._id_prefix, self.recording
        if count == 1:
            frame = chunk[:-2] + prefix + (_ID_ENDS[last] if last < _MANY else b"%d\n\n" % last)
            if recording is not None:
                recording.append(last, frame)
            return frame
        first = last - count + 1
        if last < _MANY:
            ends = _ID_ENDS[first : last + 1]
        else:
            ends = [b"%d\n\n" % number for number in range(first, last + 1)]
        blocks = chunk.split(b"\n\n")
        frames = [block + prefix + end for block, end in zip(blocks, ends, strict=False)]
        if recording is not None:
            recording.append(first, *frames)
        return b"".join(frames)

    def _process_block(self, block: bytes, now: float) -> bytes:
        if not block.endswith(b"\n\n"):
            self._line_end = line_end(block[: -len(line_end(block))])
        if has_id(block):
            self.app_owns_ids = True
            if not self._app_ids:
                self._only_adds_ids = False
                if self.recording is not None:
                    self.recording.use_app_ids()
                    self.recording = None
            if self._comment is CommentForm.BLOCK_UNTIL_ID:
                self._comment = CommentForm.LINE
        if not has_data(block):
            return block
        if self.client_kind is ClientKind.EVENTSOURCE and block.find(b"complete") >= 0:
            name = event_name(block).decode("latin-1")
            if name == self.terms.event_prefix + "complete":
                self._app_completed = True
        self.record.count_events(1, now)
        return block if self._passes_all else self._change_event(block)

    def _change_event(self, block: bytes) -> bytes:
        if self.options.trace_in_data:
            block = add_trace_id(block, self.record.trace_id)
        if self.client_kind is not ClientKind.EVENTSOURCE:
            self._detect_openai(block)
            return block
        if not (self.app_owns_ids or self._app_ids):
            block = add_line(block, b"%b%d" % (self._id_prefix[1:], self.record.chunks))
        if self.recording is not None:
            self.recording.append(self.record.chunks, block)
        return block

    def _detect_openai(self, block: bytes) -> None:
        """Detect a stream in OpenAI's dialect at its first event, and later its end."""
        if (
            self._first_chunk is None
            and (self.client_kind is ClientKind.OPENAI or self.record.chunks == 1)
            and block.find(openai.CHUNK_TYPE) >= 0
        ):
            self._first_chunk = openai.parse_chunk(event_data(block))
            if self._first_chunk is not None:
                self.client_kind = ClientKind.OPENAI
                self.record.family = ClientKind.OPENAI
        if self.client_kind is ClientKind.PLAIN:
            self._passes_all = not self.options.trace_in_data
        elif block.find(openai.DONE) >= 0 and event_data(block) == openai.DONE:
            self._app_completed = True
