"""What becomes of the app's bytes on their way to the client.

Events are counted, and numbered and recorded where they get ids; else the bytes pass as they came.
What is put in may wait a moment to be looked at with what follows it: that costs a part of looking
at each alone. Whoever asks for bytes gets it first, so that nothing overtakes it.
"""

from typing import Any, Final, Protocol

from sse_middleware.config.options import Options
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol import openai
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.deadlines import Deadlines
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
_ENDS = [b"%d\n\n" % number for number in range(_MANY)]  # of id lines: to format one costs more
_NOTHING: Final[list[bytes]] = []  # waits in all streams in which nothing waits; nobody adds to it


class Recording(Protocol):
    """What keeps the numbered events."""

    def append(self, first: int, *frames: bytes) -> None:
        """Keep the frames of the events from `first` on."""

    def skip(self, seq: int) -> None:
        """Take note that the event `seq` is not kept."""

    def use_app_ids(self) -> None:
        """Keep nothing, since the app numbers its events itself."""


class Intake(Deadlines):
    """Take the bytes of one app, cut anywhere, and return those that its client is to get.

    It is the half of a `StreamState` that looks at them.

    Args:
        options: the settings, those of a mark included.
        family: what kind of client reads.
        record: where the numbers go.
        secret: what opens the stream; the ids are made of it.
        marked: whether the endpoint is.
        comment: how a heartbeat of a plain client is written.
        app_ids: whether the app numbers its events, and they are kept all the same.

    Attributes:
        app_owns_ids: whether an id of the app's has been seen.
        fresh: what was put in and waits.
        options: the settings.
        recording: where numbered events are kept, `None` for nowhere.
    """

    __slots__ = (
        "_app_completed",
        "_app_ids",
        "_comment",
        "_first_chunk",
        "_id_prefix",
        "_line_end",
        "_only_adds_ids",
        "_passes_all",
        "_splitter",
        "app_owns_ids",
        "fresh",
        "options",
        "recording",
    )

    def __init__(
        self,
        options: Options,
        *,
        family: ClientKind,
        record: StreamRecord,
        secret: str,
        marked: bool,
        comment: CommentForm,
        app_ids: bool = False,
    ) -> None:
        super().__init__(options, family=family, record=record, marked=marked)
        self.options = options
        self.recording: Recording | None = None
        self.fresh: list[bytes] = _NOTHING
        self._id_prefix = f"\nid: {secret}-".encode() if secret else b""
        self._splitter = Splitter(options.max_event_bytes)
        self._comment = comment
        self._line_end = b"\n"
        self._first_chunk: dict[str, Any] | None = None
        self._app_ids = app_ids
        self.app_owns_ids = False
        self._app_completed = False
        self._only_adds_ids = family is ClientKind.EVENTSOURCE and not (
            options.trace_in_data or app_ids
        )
        self._passes_all = family is ClientKind.OFF

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Take bytes and return those that can be sent now."""
        if self.fresh:
            return self.take() + self.feed(chunk, now)
        return self._feed_usual(chunk, now) or b"".join(self.feed_parts(chunk, now))

    def _feed_usual(self, chunk: bytes, now: float) -> bytes:
        """Do as `feed` does where all events are usual and none tells an end, else nothing."""
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

    def put(self, chunk: bytes, now: float) -> None:
        """Take bytes that wait.

        More may be added to `fresh` for a few milliseconds; all of them count as of this moment.
        """
        self.fresh = [chunk]
        self._written_at = now

    def take(self) -> bytes:
        """Return those of the bytes that wait which can be sent now."""
        if not self.fresh:
            return b""
        fresh, self.fresh = self.fresh, _NOTHING
        now = self._written_at
        return self._feed_usual(b"".join(fresh), now) or b"".join(
            [self.feed(chunk, now) for chunk in fresh]
        )

    def feed_parts(self, chunk: bytes, now: float) -> list[bytes]:
        """Do as `feed` does, and return each event on its own."""
        chunk = bytes(chunk)
        parts = [waited] if (waited := self.take()) else []
        for kind, data in self._splitter.feed(chunk):
            if kind is Kind.BLOCK:
                parts.append(self._pass_block(data, now))
            elif kind is Kind.LAST_PART:
                number = self.record.count_events(1, now)  # without an id: it goes as it came
                if self.recording is not None:
                    self.recording.skip(number)
                parts.append(data)
            elif kind is not Kind.BOM or not self._has_spoken():
                parts.append(data)
        if parts:
            self._written_at = now
        return parts

    def _has_spoken(self) -> bool:
        """Tell whether bytes of ours stand before all of the app's."""
        return self.family is ClientKind.EVENTSOURCE or self.record.heartbeats > 0

    def _number(self, chunk: bytes, count: int, now: float) -> bytes:
        """Give each of the `count` usual events of `chunk` its id."""
        last = self.record.count_events(count, now)
        prefix, recording = self._id_prefix, self.recording
        if count == 1:
            frame = chunk[:-2] + prefix + (_ENDS[last] if last < _MANY else b"%d\n\n" % last)
            if recording is not None:
                recording.append(last, frame)
            return frame
        first = last - count + 1
        if last < _MANY:
            ends = _ENDS[first : last + 1]
        else:
            ends = [b"%d\n\n" % number for number in range(first, last + 1)]
        blocks = chunk.split(b"\n\n")
        frames = [block + prefix + end for block, end in zip(blocks, ends, strict=False)]
        if recording is not None:
            recording.append(first, *frames)
        return b"".join(frames)

    def _pass_block(self, block: bytes, now: float) -> bytes:
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
        if self.family is ClientKind.EVENTSOURCE and block.find(b"complete") >= 0:
            name = event_name(block).decode("latin-1")
            self._app_completed = self._app_completed or name == self._name("complete")
        self.record.count_events(1, now)
        return block if self._passes_all else self._change_event(block)

    def _change_event(self, block: bytes) -> bytes:
        if self.options.trace_in_data:
            block = add_trace_id(block, self.record.trace_id)
        if self.family is not ClientKind.EVENTSOURCE:
            self._look_for_openai(block)
            return block
        if not (self.app_owns_ids or self._app_ids):
            block = add_line(block, b"%b%d" % (self._id_prefix[1:], self.record.chunks))
        if self.recording is not None:
            self.recording.append(self.record.chunks, block)
        return block

    def _look_for_openai(self, block: bytes) -> None:
        """See at its first event whether a plain stream is one of OpenAI's, and where it ends."""
        if (
            self._first_chunk is None
            and (self.family is ClientKind.OPENAI or self.record.chunks == 1)
            and block.find(openai.CHUNK_TYPE) >= 0
        ):
            self._first_chunk = openai.parse_chunk(event_data(block))
            if self._first_chunk is not None:
                self.family = ClientKind.OPENAI
                self.record.family = ClientKind.OPENAI
        if self.family is ClientKind.PLAIN:
            self._passes_all = not self.options.trace_in_data
        elif block.find(openai.DONE) >= 0 and event_data(block) == openai.DONE:
            self._app_completed = True

    def _name(self, event: str) -> str:
        return self.options.event_prefix + event
