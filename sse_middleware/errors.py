"""All errors of the library, by cause.

    SSEError
    ├── ConfigurationError (also ValueError)   configuration: a setting is not allowed
    ├── EventFormatError (also ValueError)     the caller: a field would break the event stream
    └── StoreError                             the store: it cannot be reached or returns an error

An error about a value has its name, the value and the allowed values, in the message and as
attributes.
"""


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


def _shown(value: object, limit: int = 80) -> str:
    """Quote `value`, which is untrusted, on one line of at most about `limit` characters."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
