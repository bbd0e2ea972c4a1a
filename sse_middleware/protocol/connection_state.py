"""The states of a connection, and its action in each of them for each input.

A connection is opening until the response start has been sent. It is then live, and receives events
from the producer or the log; or behind, and reads the missing events from the log. It is
closing while its last bytes are being written, and then closed. It makes no decision about the
producer. `CONNECTION_TABLE` has a row for each input and a column for each phase; a missing cell is
a combination that cannot happen.
"""

import enum  # `IntEnum` for keys of the table: others are hashed by a method in Python
from typing import Final


class ConnectionPhase(enum.IntEnum):
    """The state of a connection."""

    OPENING = enum.auto()
    LIVE = enum.auto()
    BEHIND = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class ConnectionInput(enum.IntEnum):
    """An input of a connection."""

    STARTED = enum.auto()
    """The response start has been sent."""
    EVENTS = enum.auto()
    """The producer delivers events."""
    LAGS = enum.auto()
    """The client does not read, and other clients follow the stream."""
    CAUGHT_UP = enum.auto()
    """The connection has read the log up to the newest event."""
    HEARTBEAT_IS_DUE = enum.auto()
    CAP = enum.auto()
    """The time of this connection is over, or the drain begins; the client resumes the stream."""
    STREAM_ENDS = enum.auto()
    """The producer ends the stream."""
    LOG_ENDS = enum.auto()
    """The connection has read the log up to its end."""
    WRITTEN = enum.auto()
    """The last bytes have been written."""
    CLIENT_LEAVES = enum.auto()
    CLIENT_IS_BLOCKED = enum.auto()
    """The client has not read for too long."""
    WRITE_FAILS = enum.auto()
    GRACE_IS_OVER = enum.auto()
    """The request ends, and waits no longer for its last bytes."""


class ConnectionAction(enum.Enum):
    """An action of a connection."""

    WRITE = enum.auto()
    """Write the bytes."""
    ENQUEUE = enum.auto()
    """Write the bytes after the response start."""
    READ_LOG = enum.auto()
    """Discard the pending bytes, and read them from the log later."""
    WRITE_END = enum.auto()
    """Write the last bytes."""
    CLOSE = enum.auto()
    """Report that the connection is closed."""
    CUT = enum.auto()
    """Discard the pending bytes, report that the connection is closed, and end the response if the
    client reads again."""
    ABANDON = enum.auto()
    """Discard the pending bytes, and report that the connection is closed."""
    IGNORE = enum.auto()


ConnectionMove = tuple[ConnectionAction, ConnectionPhase]
"""A cell of the table: the action, and the next phase."""


def _table() -> dict[tuple[ConnectionPhase, ConnectionInput], ConnectionMove]:
    on, act = ConnectionInput, ConnectionAction
    opening, live, behind, closing, closed = phases = tuple(ConnectionPhase)
    ignore = tuple((act.IGNORE, phase) for phase in phases)
    abandon = ((act.ABANDON, closed),) * 4 + ((act.IGNORE, closed),)
    rows: dict[ConnectionInput, tuple[ConnectionMove | None, ...]] = {
        # input: opening, live, behind, closing, closed
        on.STARTED: ((act.IGNORE, live), None, None, ignore[3], ignore[4]),
        on.EVENTS: ((act.ENQUEUE, opening), (act.WRITE, live), *ignore[2:]),
        # The log does not have the first bytes, which are pending while the connection opens.
        on.LAGS: (ignore[0], (act.READ_LOG, behind), *ignore[2:]),
        on.CAUGHT_UP: (None, None, (act.IGNORE, live), None, None),
        on.HEARTBEAT_IS_DUE: (
            ignore[0],
            (act.WRITE, live),
            (act.WRITE, behind),
            None,
            None,
        ),
        on.CAP: ((act.WRITE_END, closing),) * 3 + (ignore[3], ignore[4]),
        on.STREAM_ENDS: ((act.WRITE_END, closing),) * 2 + ignore[2:],
        on.LOG_ENDS: ((act.WRITE_END, closing),) * 3 + (ignore[3], ignore[4]),
        on.WRITTEN: (None, None, None, (act.CLOSE, closed), ignore[4]),
        on.CLIENT_LEAVES: abandon,
        on.CLIENT_IS_BLOCKED: (*((act.CUT, closed),) * 4, None),
        on.WRITE_FAILS: abandon,
        on.GRACE_IS_OVER: abandon,
    }
    return {
        (phase, given): move
        for given, moves in rows.items()
        for phase, move in zip(phases, moves, strict=True)
        if move is not None
    }


CONNECTION_TABLE: Final = _table()
"""The move of a connection in each phase, for each input."""
