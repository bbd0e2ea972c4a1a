"""The interface of event storage: a log for each stream, with one writer and many readers.

A write never waits: an event is sent first and stored soon after. A read is one `follow`, which
yields the kept events and then new ones, as one sequence without a gap. A reader that has missed
events is notified of it.
"""

import asyncio
import enum
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from sse_middleware.protocol.stream_terms import StreamTerms

FIND_PAUSES: Final = (0.01, 0.02, 0.04, 0.08, 0.15, 0.2)
"""The pauses before a missing log of a shared store is looked up again, in seconds.

A client that is disconnected right after its first event may reconnect before the log is stored.
After a restart of Redis, processes begin to write the logs again within
`inbox.LONGEST_PAUSE_SECONDS`.
"""


class LogState(enum.StrEnum):
    """The state of a log, or of a batch."""

    RUNNING = "running"
    """The producer is running; a batch has events."""
    FINISHED = "finished"
    """The app has finished its response; the last frame contains the end."""
    FAILED = "failed"
    """The stream has ended before its app had finished, or the app has sent an error."""
    CANCELLED = "cancelled"
    """A reader has ended the stream."""
    LOST = "lost"
    """The producer has gone without an end of the stream."""
    GONE = "gone"
    """There is no such log."""
    TRUNCATED = "truncated"
    """The events up to `last` are not kept."""
    APP_OWNS_IDS = "disowned"
    """The app sets event ids itself, so the middleware's ids of this stream are not valid."""


ENDED_BY_APP: Final = (LogState.FINISHED, LogState.FAILED)
"""The states in which a log without a frame at its end has been ended by the app's own event."""


@dataclass(slots=True, kw_only=True)  # not frozen: that would double the cost of a log's start
class LogInfo:
    """The metadata of a stream, known from its beginning; it never changes.

    Attributes:
        stream_id: its public id, which is also that of the log.
        path: the path of the request.
        identity: the digest of the client's identity, `""` if the secret alone gives access.
        method: the HTTP method.
        body_digest: the digest of the request's body, `None` if it is not known.
        origin: the request's `Origin`.
        headers: the headers of the app's response, one per line with CRLF.
        route: the route's name, one of a bounded set.
        app_ids: whether the app sets event ids itself.
        opened_on: the time at which the response started, in seconds since the epoch.
        terms: the parameters of the stream that are announced to clients.
        secret: the secret of its event ids, `""` if they are the app's.
        asks_for_stream: whether `Accept` names event streams, for a mark that attaches requests.
        keep_seconds: how long its log is kept after its end, `None` for the time of the store.
        traceparent: the ids of its span in a trace, `""` without one.
    """

    stream_id: str
    path: str
    identity: str
    method: str
    body_digest: str | None
    origin: str
    headers: bytes
    route: str
    app_ids: bool
    opened_on: float
    terms: StreamTerms
    secret: str = field(default="", repr=False)
    asks_for_stream: bool = False
    keep_seconds: float | None = None
    traceparent: str = ""

    def seconds_kept(self, usual: float) -> float:
        """Return how long the log is kept after its end, in a store with this usual time."""
        return usual if self.keep_seconds is None else self.keep_seconds


class LogSnapshot(NamedTuple):
    """The current state of a log.

    Attributes:
        info: the metadata of the stream.
        state: `RUNNING`, or the state in which it has ended.
        last: the number of its last event, 0 if it has none.
        has_end_frame: whether a frame follows that event that contains the end of the stream.
        first: the number of the oldest event that is kept, or will be.
        identity_key: the key with which the store has sealed `info.identity`, empty if it has not.
    """

    info: LogInfo
    state: LogState
    last: int
    has_end_frame: bool
    first: int = 1
    identity_key: bytes = b""


def seal_identity(identity: str, key: bytes) -> str:
    """Return the digest of an identity that only a holder of `key` can compute.

    Args:
        identity: an identity, `""` for none.
        key: at most 64 bytes, empty to leave the identity unchanged.
    """
    if not (identity and key):
        return identity
    return hashlib.blake2b(identity.encode(), key=key, digest_size=16).hexdigest()


class Batch(NamedTuple):
    """Some whole frames of a log, in order.

    Attributes:
        state: `RUNNING` if frames may follow; `TRUNCATED` before a batch that follows a gap; the
            state in which the stream has ended, for the last batch.
        last: the number of the last event that a reader has after this batch.
        frames: frames in wire format. The last batch contains the frame with the end, or nothing.
        tokens: the tokens that the app has counted, up to its last event at least; 0 if the batch
            does not have them.
    """

    state: LogState
    last: int
    frames: bytes
    tokens: int = 0


class LogListener(Protocol):
    """The writer of a log. The store calls it in the event loop in which the log was created."""

    def on_cancel(self) -> None:
        """Handle a reader's request to end the stream."""

    def on_readers_changed(self, *, has_readers: bool) -> None:
        """Handle that the log has its first reader, or has lost its last one."""


class Log(Protocol):
    """The writer's side of a log. No method raises, and only `flush` waits."""

    def append(self, first: int, data: bytes, count: int = 1) -> None:
        """Append the frames of `count` events, the first of which has the number `first`.

        Numbers grow; a missing number is a gap.

        Args:
            first: the number of the first event.
            data: the frames, without gaps. A single frame has any bytes. Of several, each ends at
                its first blank line, two LF: `split_frames` returns them.
            count: the number of events, at least 1.
        """

    def skip(self, seq: int) -> None:
        """Record that the event `seq` is not kept; a reader that misses it is notified."""

    def count_tokens(self, total: int) -> None:
        """Store the number of tokens that the app has counted; readers get it with the next event.

        A store that can do so notifies them at once.
        """

    def end(self, state: LogState, frame: bytes = b"") -> None:
        """End the log, once; later calls are ignored.

        Args:
            state: `GONE` to drop the log; any other end keeps it for a while.
            frame: the frame that contains the end, if there is one.
        """

    def use_app_ids(self) -> None:
        """Drop the events and end the log, because the app sets event ids itself."""

    def set_name(self, name: str) -> None:
        """Let `find_named` find this log by a further name; the latest log of a name counts.

        This ends a claim to the name.
        """

    async def flush(self) -> None:
        """Wait until the whole log is stored, without a timeout."""


class EventStore(Protocol):
    """Storage of logs.

    All coroutines may raise a `StoreError` if the store is out of reach.

    Attributes:
        is_shared: whether other processes read the same logs.
    """

    is_shared: bool

    def create(self, info: LogInfo, producer: LogListener) -> Log:
        """Begin the log of a new stream."""

    async def find(self, stream_id: str) -> LogSnapshot | None:
        """Return the log of a stream, `None` if there is none."""

    async def find_named(self, name: str) -> LogSnapshot | None:
        """Return the latest log of a name, `None` if there is none."""

    def follow(self, stream_id: str, after: int) -> AsyncGenerator[Batch, None]:
        """Read a log after the event `after`, and continue as it grows, until it ends.

        Close the generator (`contextlib.aclosing`), because the store counts its readers.
        """

    async def cancel(self, stream_id: str) -> bool:
        """Ask the producer of a stream to end it; return `False` if there is no such log."""

    async def claim(self, name: str, stream_id: str) -> str:
        """Claim a name for a stream that may open, and return the stream that has the claim.

        The first one has it until a log gets the name, until `release`, or until some seconds after
        its process has died.
        """

    async def claimant(self, name: str) -> str | None:
        """Return the stream that has the claim to a name, `None` if none has.

        If a log has got the name before this returns `None`, `find_named` finds it after that.
        """

    def release(self, name: str, stream_id: str) -> None:
        """Give up the claim of a stream to a name soon, if it has it."""

    async def close(self) -> None:
        """Close all connections and timers."""


async def find_patiently(
    find: Callable[[str], Awaitable[LogSnapshot | None]],
    key: str,
    exists: Callable[[str], Awaitable[bool]] | None = None,
) -> LogSnapshot | None:
    """Look up a log that another process may store a little later.

    Args:
        find: returns the log.
        key: its id or name.
        exists: returns whether there is a log, if that costs less.
    """
    found = await find(key)
    for pause in FIND_PAUSES:
        if found is not None:
            break
        await asyncio.sleep(pause)
        if exists is None or await exists(key):
            found = await find(key)
    return found


def split_frames(data: bytes, count: int) -> list[bytes]:
    """Return the frames of `count` events, from the arguments of `Log.append`."""
    if count == 1:
        return [data]
    return [block + b"\n\n" for block in data.split(b"\n\n")[:-1]]
