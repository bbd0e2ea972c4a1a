"""Cursors: the ids that we give to events, and what of them may be seen by whom.

A cursor is `<secret>-<seq>`, and behind the end of a stream `<secret>-<seq>.<ending>`. Who holds
the secret may read the stream, so it stands in the stream itself and nowhere else; the stream id,
its digest, stands in headers, logs and metrics.
"""

import enum
import hashlib
import re
import secrets
from dataclasses import dataclass, field

_SECRET_BYTES = 16  # 128 bits, as a UUID or an RFC 6750 token would at least carry
_LONGEST = 64
_CURSOR = re.compile(r"([A-Za-z0-9_-]{22})-(0|[1-9][0-9]{0,14})(?:\.(end|again|cut))?")


def new_secret() -> str:
    """Return 128 random bits as 22 url-safe characters."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def stream_id(secret: str) -> str:
    """Return the public name of the stream that `secret` opens: 32 hexadecimal digits."""
    return hashlib.blake2b(secret.encode(), digest_size=16).hexdigest()


class Ending(enum.StrEnum):
    """What a client that comes back behind the end of a stream is to get; no store is asked."""

    FINAL = "end"
    """Nothing: the stream was all there is."""
    AGAIN = "again"
    """The app's answer anew, as without us: pages poll that way."""
    CUT = "cut"
    """The app's answer anew, and told that it is: the stream has ended before its time."""


@dataclass(frozen=True, slots=True)
class EventId:
    """A place in a stream: behind the event `seq`, 0 for before the first one."""

    secret: str = field(repr=False)
    seq: int
    ending: Ending | None = None

    def __str__(self) -> str:
        return f"{self.secret}-{self.seq}{f'.{self.ending}' if self.ending else ''}"


def parse_event_id(text: str) -> EventId | None:
    """Read a cursor of ours out of hostile input, `None` where it is anything else."""
    found = _CURSOR.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    secret, seq, ending = found.groups()
    return EventId(secret=secret, seq=int(seq), ending=None if ending is None else Ending(ending))
