"""The state machine of a connection: its phases, its inputs, and its action for each pair of them.

The phases of a connection, in order:

- OPENING: the response start has not been sent yet.
- LIVE: each event is written when the producer or the log delivers it.
- BEHIND: the client reads too slowly, so that its missing events are read from the log until it has
  caught up and is live again.
- CLOSING: the last bytes are being written.
- CLOSED: nothing more is written.

A connection never ends its producer; it reports that it has closed, and the producer decides
whether the app continues. `CONNECTION_TABLE` gives the action and the next phase for each phase and
input. A pair that is not in the table cannot occur.
"""

import enum  # `IntEnum` for keys of the table: others are hashed by a method in Python
from typing import Final


class ConnectionPhase(enum.IntEnum):
    """A phase of a connection; the module describes each."""

    OPENING = enum.auto()
    LIVE = enum.auto()
    BEHIND = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


class ConnectionInput(enum.IntEnum):
    """Something that happens to a connection."""

    STARTED = enum.auto()
    """The response start has been sent."""
    EVENTS = enum.auto()
    """The producer delivers events."""
    LAGS = enum.auto()
    """The client reads too slowly, and the app must not wait for it: others follow the stream."""
    CAUGHT_UP = enum.auto()
    """The connection has read the log up to the newest event."""
    HEARTBEAT_IS_DUE = enum.auto()
    CAP = enum.auto()
    """The cap of this connection is reached, or the drain begins; the stream itself continues."""
    STREAM_ENDS = enum.auto()
    """The producer ends the stream."""
    LOG_ENDS = enum.auto()
    """The connection has read the log up to its end."""
    WRITTEN = enum.auto()
    """The last bytes have been written."""
    CLIENT_LEAVES = enum.auto()
    CLIENT_IS_BLOCKED = enum.auto()
    """A write has taken longer than `SSE_SEND_TIMEOUT`."""
    WRITE_FAILS = enum.auto()
    GRACE_IS_OVER = enum.auto()
    """The time in which the last bytes could be written, at the end of the request, is over."""


class ConnectionAction(enum.Enum):
    """What a connection does for an input."""

    WRITE = enum.auto()
    """Write the bytes."""
    ENQUEUE = enum.auto()
    """Keep the bytes, and write them after the response start."""
    READ_LOG = enum.auto()
    """Discard the bytes that are not written yet; they are read from the log again."""
    WRITE_END = enum.auto()
    """Write what is pending, and then the last bytes of this client kind."""
    CLOSE = enum.auto()
    """Report that the connection is closed."""
    CUT = enum.auto()
    """Discard the pending bytes and report that the connection is closed. If the blocked write
    succeeds later, end the response."""
    ABANDON = enum.auto()
    """Discard the pending bytes, and report that the connection is closed."""
    IGNORE = enum.auto()


ConnectionMove = tuple[ConnectionAction, ConnectionPhase]
"""The action for an input, and the next phase."""


def _table() -> dict[tuple[ConnectionPhase, ConnectionInput], ConnectionMove]:
    on, act = ConnectionInput, ConnectionAction
    opening, live, behind, closing, closed = phases = tuple(ConnectionPhase)
    ignore = tuple((act.IGNORE, phase) for phase in phases)
    abandon = ((act.ABANDON, closed),) * 4 + ((act.IGNORE, closed),)
    rows: dict[ConnectionInput, tuple[ConnectionMove | None, ...]] = {
        # input: opening, live, behind, closing, closed
        on.STARTED: ((act.IGNORE, live), None, None, ignore[3], ignore[4]),
        on.EVENTS: ((act.ENQUEUE, opening), (act.WRITE, live), *ignore[2:]),
        # While opening, the pending bytes contain the first ones, which are not in the log.
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
"""The action of a connection and its next phase, by its phase and the input."""
