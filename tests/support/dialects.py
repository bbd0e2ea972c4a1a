"""The sans-IO half of a stream for tests: one intake, and dialects that write what it returns."""

from dataclasses import replace
from typing import Any

from sse_middleware import Options
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.intake import Intake
from sse_middleware.protocol.stream_end import Reason, StreamEnd
from sse_middleware.protocol.stream_profile import StreamProfile
from sse_middleware.stores.base import split_frames

SECRET = "x" * 22
EPOCH = 1_767_268_700.0
"""The Unix time at which the clock of a test was 0: 2026-01-01 11:58:20."""


class RecordedLog:
    """Records the events that are kept, in order."""

    def __init__(self) -> None:
        self.frames: dict[int, bytes] = {}
        self.skipped: list[int] = []
        self.has_app_ids = False

    def append(self, first: int, data: bytes, count: int = 1) -> None:
        frames = split_frames(data, count)
        assert len(frames) == count
        assert not any(seq in self.frames for seq in range(first, first + len(frames)))
        self.frames.update(enumerate(frames, first))

    def skip(self, seq: int) -> None:
        self.skipped.append(seq)

    def use_app_ids(self) -> None:
        self.has_app_ids = True

    def after(self, number: int) -> bytes:
        """Return all frames after the event `number`."""
        return b"".join(frame for seq, frame in self.frames.items() if seq > number)


def new_record(client_kind: ClientKind) -> StreamRecord:
    return StreamRecord("s", "t", "/route", client_kind, opened_at=100.0)


def new_profile(
    client_kind: ClientKind,
    *,
    app_ids: bool = False,
    comment: CommentForm | None = None,
    **settings: Any,
) -> StreamProfile:
    options = Options.from_environ({}, **settings)
    profile = StreamProfile.from_options(options, client_kind, app_ids=app_ids)
    return profile if comment is None else replace(profile, comment=comment)


def new_dialect(
    client_kind: ClientKind,
    record: StreamRecord | None = None,
    *,
    app_ids: bool = False,
    comment: CommentForm = CommentForm.BLOCK,
    **settings: Any,
) -> Dialect:
    """Return an open dialect; a test that needs its first bytes opens it again."""
    dialect = Dialect(
        new_profile(client_kind, app_ids=app_ids, comment=comment, **settings),
        new_record(client_kind) if record is None else record,
        SECRET if client_kind is ClientKind.EVENTSOURCE else "",
    )
    dialect.open(100.0, EPOCH)
    return dialect


def new_intake(
    client_kind: ClientKind, *, app_ids: bool = False, is_kept: bool = True, **settings: Any
) -> Intake:
    profile = new_profile(client_kind, app_ids=app_ids, **settings)
    intake = Intake(profile, new_record(client_kind))
    intake.log = RecordedLog() if is_kept else None
    return intake


class Live:
    """An app, and the connection of its own client.

    Attributes:
        out: all bytes that the client has received.
    """

    def __init__(
        self,
        client_kind: ClientKind = ClientKind.EVENTSOURCE,
        *,
        app_ids: bool = False,
        comment: CommentForm = CommentForm.BLOCK,
        is_kept: bool = True,
        **settings: Any,
    ) -> None:
        self.intake = new_intake(client_kind, app_ids=app_ids, is_kept=is_kept, **settings)
        self.record = self.intake.record
        log = self.intake.log
        self.log = log if isinstance(log, RecordedLog) else None
        self.dialect = new_dialect(
            client_kind, self.record, app_ids=app_ids, comment=comment, **settings
        )
        self.out = self.preamble = self.dialect.open(100.0, EPOCH)

    def feed(self, chunk: bytes, now: float = 101.0, *, parses: bool = False) -> bytes:
        """Write bytes of the app as `AppWriter` does; return what the client receives at once."""
        dialect, intake = self.dialect, self.intake
        count = 0 if parses else intake.feed_usual(chunk, now)
        if count:
            out = dialect.number(chunk, self.record.chunks, count)
        else:
            parts = intake.feed(chunk, now)
            if intake.has_ids:
                dialect.on_ids_seen()
            if intake.app_owns_ids:
                dialect.on_app_ids()
            out = b"".join([dialect.part(number, data, now) for number, data in parts])
        self.out += out
        return out

    def feed_joined(self, chunks: list[bytes], now: float = 101.0, *, parses: bool = False) -> None:
        """Write several chunks of one tick as `AppWriter` does: together if all are usual."""
        joined = b"".join(chunks)
        count = 0 if parses else self.intake.feed_usual(joined, now)
        if count:
            self.out += self.dialect.number(joined, self.record.chunks, count)
            return
        for chunk in chunks:
            self.feed(chunk, now, parses=parses)

    def heartbeat(self, now: float = 105.0) -> bytes:
        out = self.dialect.heartbeat(now)
        self.out += out
        return out

    def end(self, reason: Reason, now: float = 110.0) -> tuple[bytes, bool, StreamEnd]:
        """End the stream; return the last bytes, whether they are clean, and the end of the log."""
        end, in_log = self.intake.end(reason, now - self.record.opened_at)
        data, clean = self.dialect.end(end, 0.0)
        self.out += data
        return data, clean, in_log
