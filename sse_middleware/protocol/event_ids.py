"""Event ids: the ids that the middleware adds to events.

An event id is `<secret>-<seq>`; that of an end event is `<secret>-<seq>.<ending>`. A client that
has the secret may read the stream, so the secret is sent only in the stream itself. The stream id,
a digest of the secret, appears in headers, logs and metrics.
"""

import enum
import hashlib
import os
import re
from binascii import b2a_base64
from dataclasses import dataclass, field

_SECRET_BYTES = 16  # 128 bits, as a UUID or an RFC 6750 token would at least carry
_SECRET_LENGTH = 22  # characters, without the padding
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_MAX_LENGTH = 64
_STREAM_ID = re.compile(r"[0-9a-f]{32}")
_EVENT_ID = re.compile(r"([A-Za-z0-9_-]{22})-(0|[1-9][0-9]{0,14})(?:\.(end|cut))?")


def new_secret() -> str:
    """Return 128 random bits as 22 url-safe characters."""
    # As `secrets.token_urlsafe`, with six calls less.
    return b2a_base64(os.urandom(_SECRET_BYTES))[:_SECRET_LENGTH].translate(_URL_SAFE).decode()


def stream_id(secret: str) -> str:
    """Return the public id of the stream with this `secret`: 32 hexadecimal digits."""
    return hashlib.blake2b(secret.encode(), digest_size=16).hexdigest()


def is_stream_id(text: str) -> bool:
    """Return whether an untrusted text can be a public stream id."""
    return _STREAM_ID.fullmatch(text) is not None


class Ending(enum.StrEnum):
    """The response to a client that reconnects after the end of a stream; no store is needed."""

    FINAL = "end"
    """No stream: there is nothing more to read."""
    CUT = "cut"
    """A new stream of the app that begins with a `reset`: the stream has ended early."""


@dataclass(frozen=True, slots=True)
class EventId:
    """A position in a stream: after the event `seq`, or before the first one if it is 0."""

    secret: str = field(repr=False)
    seq: int
    ending: Ending | None = None

    def __str__(self) -> str:
        return format_event_id(self.secret, self.seq, self.ending)


def format_event_id(secret: str, seq: int, ending: Ending | None = None) -> str:
    """Write an event id."""
    return f"{secret}-{seq}.{ending}" if ending else f"{secret}-{seq}"


def parse_event_id(text: str) -> EventId | None:
    """Parse an event id from untrusted input; return `None` if it is not one of ours."""
    found = _EVENT_ID.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if found is None:
        return None
    secret, seq, ending = found.groups()
    return EventId(secret=secret, seq=int(seq), ending=None if ending is None else Ending(ending))
