"""The states of a producer, and its action in each of them for each input.

A producer is open while its own client is connected. It is detached while it continues without that
client: other clients follow the log, or it lingers. It ends once, for one reason. `PRODUCER_TABLE`
has a row for each input and a column for each phase; a missing cell is a combination that cannot
happen.
"""

import enum  # `IntEnum` for keys of the table: others are hashed by a method in Python
from typing import Final, NamedTuple

from sse_middleware.protocol.stream_end import Reason


class ProducerPhase(enum.IntEnum):
    """The state of a producer."""

    OPEN = enum.auto()
    """Its own client is connected."""
    DETACHED = enum.auto()
    """It continues without its own client: others follow the log, or it lingers."""
    LEFT = enum.auto()
    """Its only client has left and cannot return; the app has yet to notice it."""
    COMPLETE = enum.auto()
    """The app has ended its response to its own client."""
    ENDED = enum.auto()


class ProducerInput(enum.IntEnum):
    """An input of a producer."""

    APP_WRITES = enum.auto()
    APP_ENDS = enum.auto()
    """The app sends its last message."""
    APP_RAISES = enum.auto()
    APP_RETURNS = enum.auto()
    """The app returns without a last message."""
    APP_IS_CANCELLED = enum.auto()
    """The server cancels the task of the request, while its client reads."""
    APP_IS_LOST = enum.auto()
    """The server cancels the task of the request, while its client does not read."""
    APP_STOPS_FOR_DRAIN = enum.auto()
    """The app has returned, or is cancelled, while the server shuts down."""
    CONNECTION_FOLLOWS = enum.auto()
    """A client resumes the stream, the first one at that time."""
    CLIENT_MAY_RETURN = enum.auto()
    """A connection has closed, and a client can resume the stream."""
    CLIENT_HAS_LEFT = enum.auto()
    """The last connection has closed, and no client can resume the stream."""
    CLIENT_IS_CUT = enum.auto()
    """As before, and the response has ended: the client did not read, or was to reconnect."""
    LINGER_IS_OVER = enum.auto()
    CAP = enum.auto()
    DRAIN_IS_OVER = enum.auto()
    EVICT = enum.auto()
    CANCEL = enum.auto()
    """A client stops the stream."""


class ProducerAction(enum.Enum):
    """An action of a producer."""

    DELIVER = enum.auto()
    """Count, record and deliver the events."""
    PASS_ON = enum.auto()
    """Pass the message on to the server, as without the middleware."""
    DISCARD = enum.auto()
    """Discard the message."""
    FINISH = enum.auto()
    """End the stream; the app is not interrupted."""
    LOSE = enum.auto()
    """The same, but a client that returns learns that the producer is lost."""
    STOP = enum.auto()
    """End the stream, and stop the app."""
    LINGER = enum.auto()
    """Wait for a client that resumes the stream."""
    STOP_LINGERING = enum.auto()
    """Wait no longer: a client follows the stream."""
    IGNORE = enum.auto()


class ProducerMove(NamedTuple):
    """A cell of the table.

    Attributes:
        action: the action.
        phase: the next phase.
        reason: the reason of the end, `None` if the stream continues.
    """

    action: ProducerAction
    phase: ProducerPhase
    reason: Reason | None = None


def _table() -> dict[tuple[ProducerPhase, ProducerInput], ProducerMove]:
    on, act = ProducerInput, ProducerAction
    phases = tuple(ProducerPhase)
    _, detached, left, complete, ended = phases

    def finish(reason: Reason, phase: ProducerPhase = ended) -> ProducerMove:
        return ProducerMove(act.FINISH, phase, reason)

    def stop(reason: Reason) -> ProducerMove:
        return ProducerMove(act.STOP, ended, reason)

    def stay(action: ProducerAction) -> tuple[ProducerMove, ...]:
        return tuple(ProducerMove(action, phase) for phase in phases)

    ignore, pass_on, discard = stay(act.IGNORE), stay(act.PASS_ON), stay(act.DISCARD)
    linger = ProducerMove(act.LINGER, detached)
    over = ignore[2:]
    rows: dict[ProducerInput, tuple[ProducerMove | None, ...]] = {
        # input: open, detached, left, complete, ended
        on.APP_WRITES: (*stay(act.DELIVER)[:2], *pass_on[2:4], discard[4]),
        on.APP_ENDS: (
            finish(Reason.FINISHED, complete),
            finish(Reason.FINISHED),
            ProducerMove(act.PASS_ON, complete),
            pass_on[3],
            discard[4],
        ),
        on.APP_RAISES: (finish(Reason.ERROR),) * 2 + over,
        on.APP_RETURNS: (finish(Reason.INCOMPLETE),) * 2 + over,
        # Some servers cancel the task of a client that has left.
        on.APP_IS_CANCELLED: (
            ProducerMove(act.LOSE, ended, Reason.SHUTDOWN),
            finish(Reason.LOST),
            *over,
        ),
        on.APP_IS_LOST: (finish(Reason.LOST),) * 2 + over,
        on.APP_STOPS_FOR_DRAIN: (finish(Reason.SHUTDOWN),) * 2 + over,
        on.CONNECTION_FOLLOWS: (ignore[0], ProducerMove(act.STOP_LINGERING, detached), *over),
        on.CLIENT_MAY_RETURN: (linger, linger, None, None, None),
        on.CLIENT_HAS_LEFT: (
            ProducerMove(act.FINISH, left, Reason.GONE),
            stop(Reason.GONE),
            None,
            None,
            None,
        ),
        on.CLIENT_IS_CUT: (stop(Reason.GONE), None, None, None, None),
        on.LINGER_IS_OVER: (None, stop(Reason.GONE), None, None, None),
        on.CAP: (
            stop(Reason.DURATION_CAP),
            stop(Reason.DURATION_CAP),
            ProducerMove(act.STOP, ended),
            *ignore[3:],
        ),
        on.DRAIN_IS_OVER: (
            stop(Reason.SHUTDOWN),
            stop(Reason.SHUTDOWN),
            ProducerMove(act.STOP, ended),
            *ignore[3:],
        ),
        on.EVICT: (
            stop(Reason.EVICTED),
            stop(Reason.EVICTED),
            ProducerMove(act.STOP, ended),
            *ignore[3:],
        ),
        on.CANCEL: (stop(Reason.CANCELLED),) * 2 + over,
    }
    return {
        (phase, given): move
        for given, moves in rows.items()
        for phase, move in zip(phases, moves, strict=True)
        if move is not None
    }


PRODUCER_TABLE: Final = _table()
"""The move of a producer in each phase, for each input."""
