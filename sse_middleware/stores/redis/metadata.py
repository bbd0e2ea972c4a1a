"""The metadata of a log in Redis, as JSON. What another program has written is refused."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple, get_type_hints

from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.stores.base import LogInfo, seal_identity

_TYPES: Final = {kind: get_type_hints(kind) for kind in (LogInfo, StreamTerms)}
_LOWEST: Final = {"heartbeat_interval": 0.05, "max_seconds": 0.05, "silence_threshold": 0.05}
"""The lowest value of each number, as in the settings; 0 for all others."""
_LARGEST: Final = 1e12
"""The largest number: 30,000 years in seconds."""
_ID: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{0,64}")
_TRACEPARENT: Final = re.compile(r"(?:00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?")
_HEADER: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\0\r\n]*")
_CHECKS: Final = {
    "stream_id": _ID.fullmatch,
    "identity": _ID.fullmatch,
    "secret": _ID.fullmatch,
    "event_prefix": _PREFIX.fullmatch,
    "traceparent": _TRACEPARENT.fullmatch,
}
"""Fields that are sent to clients, compared with digests or parsed."""


class LogMetadata(NamedTuple):
    """The metadata of a log.

    Attributes:
        info: the metadata of the stream.
        process: the process that writes the log.
        names: the digests of its names.
    """

    info: LogInfo
    process: str
    names: tuple[str, ...]


def pack_metadata(info: LogInfo, process: str, names: Sequence[str], identity_key: bytes) -> bytes:
    """Serialize the metadata of a log, as in `LogMetadata`, with its identity sealed by a key."""
    packed = {**asdict(info), "headers": info.headers.decode("latin-1")}
    packed["identity"] = seal_identity(info.identity, identity_key)
    packed |= packed.pop("terms")  # the terms are stored as fields of their own
    return json.dumps([packed, process, *names]).encode()


def unpack_metadata(data: bytes) -> LogMetadata:
    """Parse the result of `pack_metadata`.

    Raises:
        ValueError: another version, or another program, has written it.
    """
    try:
        packed, process, *names = json.loads(data)
        terms = StreamTerms(**{name: packed.pop(name) for name in StreamTerms.__slots__})
        headers = packed.pop("headers").encode("latin-1")
        info = LogInfo(**packed, headers=headers, terms=terms)
        _check_types(terms)
        _check_types(info)
        is_known = all(isinstance(one, str) for one in (process, *names)) and _are_headers(headers)
    except (TypeError, KeyError, AttributeError, ValueError, RecursionError) as exc:
        raise ValueError("the metadata of a stream was written by another version") from exc
    if not is_known:
        raise ValueError("the metadata of a stream was written by another program")
    return LogMetadata(info, process, tuple(names))


def _check_types(value: LogInfo | StreamTerms) -> None:
    """Check the types and bounds of the fields, and the text of those that are sent or compared."""
    for name, kind in _TYPES[type(value)].items():
        if not _is_allowed(name, getattr(value, name), kind):
            raise TypeError(f"{name} has another type")


def _is_allowed(name: str, value: object, kind: Any) -> bool:
    if isinstance(value, bool):  # which is an int
        return kind is bool
    if isinstance(value, int | float):
        is_in_bounds = _LOWEST.get(name, 0) <= value <= _LARGEST
        return is_in_bounds and any(isinstance(one, kind) for one in (value, float(value)))
    if isinstance(value, str) and name in _CHECKS:
        return _CHECKS[name](value) is not None
    return isinstance(value, kind)


def _are_headers(lines: bytes) -> bool:
    return all(map(_HEADER.fullmatch, lines.split(b"\r\n")[:-1])) and lines[-2:] in (b"", b"\r\n")
