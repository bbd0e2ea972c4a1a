"""All errors of the library, by cause.

    SSEError
    ├── ConfigurationError (also ValueError)   configuration: a setting is not allowed
    ├── EventFormatError (also ValueError)     the caller: a field would break the event stream
    └── StoreError                             the store: it cannot be reached or returns an error

An error about a value has its name, the value and the allowed values, in the message and as
attributes.
"""

import re
from typing import Final
from urllib.parse import unquote

_REDACTED: Final = "***"
_SECRET: Final = re.compile(r"auth|cred|key|pass|pw|secret|token|user", re.IGNORECASE)
"""Names of parameters whose values are not displayed."""
_HOSTS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^][:@,]*)(?::\d*)?")


class SSEError(Exception):
    """The base class of all errors of the library."""


class _InvalidValueError(SSEError, ValueError):
    def __init__(self, name: str, got: object, allowed: str) -> None:
        super().__init__(f"{name} is {_shown(got)}, allowed is {allowed}")
        self.name = name
        self.got = got
        self.allowed = allowed


class ConfigurationError(_InvalidValueError):
    """A setting is not allowed: `name` (argument or variable), `got`, `allowed`."""


class EventFormatError(_InvalidValueError):
    """A field of an event cannot be encoded: `name` (the field), `got`, `allowed`."""


class StoreError(SSEError):
    """An event store cannot be reached or returns an error; another attempt may succeed."""


def redact_url(value: object) -> str:
    """Return a URL, which may be invalid, without its passwords, to be displayed."""
    scheme, has_scheme, rest = str(value).partition("://")
    if not has_scheme:
        scheme, rest = "", scheme
    address, has_query, query = rest.partition("?")
    login, at, hosts = address.rpartition("@")
    host, slash, path = hosts.partition("/")
    # Text that is no host may be a password: "redis://:secret", or one that contains a "?".
    is_known = "@" not in query.partition("=")[0] and all(map(_HOSTS.fullmatch, host.split(",")))
    shown = f"{_REDACTED if login else ''}{at}{host}{slash}{path}" if is_known else _REDACTED
    parameters = "&".join(map(_redact_parameter, query.split("&"))) if query else ""
    return f"{scheme}{has_scheme}{shown}{has_query}{parameters}"


def _redact_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    if not equals or "@" in name:
        return _REDACTED
    return f"{name}={_REDACTED}" if "@" in parameter or _SECRET.search(unquote(name)) else parameter


class Unquoted(str):
    """A description of a value, in place of the value, which is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _shown(value: object, limit: int = 80) -> str:
    """Quote `value`, which is untrusted, on one line of at most about `limit` characters."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
