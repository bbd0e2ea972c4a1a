"""The seam to where events are kept: a log for each stream, with one writer and many readers.

Writing never waits: an event is shown first and stored soon after. Reading is one `follow`, which
gives what is kept and then what comes, as one sequence, so that there is no gap between the two. A
reader that has missed something is told so, and never finds a hole by itself.
"""

import enum
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sse_middleware.protocol.stream_terms import StreamTerms


class LogState(enum.StrEnum):
    """How a log is, or what a batch of it says."""

    RUNNING = "running"
    """The producer is at it; a batch has events."""
    FINISHED = "finished"
    """The producer has ended the stream, for whatever reason its last frame tells."""
    CANCELLED = "cancelled"
    """A reader has ended the stream."""
    LOST = "lost"
    """The producer is gone and has not said how the stream ends."""
    GONE = "gone"
    """There is no such log, or not any more."""
    TRUNCATED = "truncated"
    """Events before the next batch are not kept; `last` says up to which."""
    APP_OWNS_IDS = "disowned"
    """The app turned out to number its events itself: a cursor of ours into it counts as none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogInfo:
    """What is known of a stream from its beginning.

    Attributes:
        stream_id: its public name, under which the log is kept.
        path: where it was asked for.
        identity: a digest of who has asked, `""` where the secret alone opens it.
        method: the HTTP method.
        body_digest: that of the request's body, `None` where it is not known.
        origin: the request's `Origin`.
        headers: those of the app's response, one per CRLF-ended line.
        route: its bounded name.
        marked: whether the endpoint is.
        app_ids: whether the ids of its events are the app's.
        opened_on: when the response started, in seconds since the epoch.
        terms: the parameters of the stream that are announced to clients.
    """

    stream_id: str
    path: str
    identity: str
    method: str
    body_digest: str | None
    origin: str
    headers: bytes
    route: str
    marked: bool
    app_ids: bool
    opened_on: float
    terms: StreamTerms


class LogSnapshot(NamedTuple):
    """A log as it is now.

    Attributes:
        info: what is known of the stream.
        state: `RUNNING`, or how it has ended.
        last: the number of its last event, 0 where it has none yet.
        tells_end: whether a frame stands behind that event, which says how the stream has ended.
        first: the number of the oldest event that is kept, or will be.
    """

    info: LogInfo
    state: LogState
    last: int
    tells_end: bool
    first: int = 1


class Batch(NamedTuple):
    """Some whole frames of a log, in order.

    Attributes:
        state: `RUNNING` where frames may follow, `TRUNCATED` before a batch that has a hole in
            front of it, else how the stream has ended: then it is the last batch.
        last: the number of the last event that a reader has with it.
        frames: as they stand on the wire; the last batch has the frame that tells the end, or
            nothing.
    """

    state: LogState
    last: int
    frames: bytes


class LogListener(Protocol):
    """Whoever writes a log; the store calls in the event loop in which the log was made."""

    def on_cancel(self) -> None:
        """Hear that a reader wants the stream to end."""

    def on_readers_changed(self, *, has_readers: bool) -> None:
        """Hear that the log has got a first reader, or has lost its last one."""


class Log(Protocol):
    """The writer's side of a log. Nothing here raises, and nothing waits but `flush`."""

    def append(self, first: int, *frames: bytes) -> None:
        """Keep the frames of the events from `first` on, at least one.

        Numbers grow; one that is left out is a hole.
        """

    def skip(self, seq: int) -> None:
        """Take note that the event `seq` is not kept, so that whoever has missed it is told."""

    def end(self, state: LogState, frame: bytes = b"") -> None:
        """End the log, once; what comes later is ignored.

        Args:
            state: `FINISHED`, `CANCELLED` or `LOST`: the log is kept for a while; `GONE`: it is
                dropped.
            frame: what tells readers of the end, if anything does.
        """

    def use_app_ids(self) -> None:
        """Drop the events and end the log: the app turned out to number them itself."""

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log; the latest log of a name counts."""

    async def flush(self) -> None:
        """Wait until the log is kept as it is now, however long that takes."""


class EventStore(Protocol):
    """Where logs are kept.

    All that waits may raise a `StoreError`: the store is out of reach.

    Attributes:
        is_shared: whether other processes read the same logs.
    """

    is_shared: bool

    def create(self, info: LogInfo, producer: LogListener) -> Log:
        """Begin the log of a new stream."""

    async def find(self, stream_id: str) -> LogSnapshot | None:
        """Return the log of a stream, `None` where there is none."""

    async def find_named(self, name: str) -> LogSnapshot | None:
        """Return the latest log of a name, `None` where there is none."""

    def follow(self, stream_id: str, after: int) -> AsyncGenerator[Batch, None]:
        """Read a log behind the event `after`, and go on as it grows, until it ends.

        Close the generator (`contextlib.aclosing`), for the store counts its readers.
        """

    async def cancel(self, stream_id: str) -> bool:
        """Tell the producer of a stream to end it; `False` where there is no such log."""

    async def close(self) -> None:
        """Let go of all connections and timers."""
