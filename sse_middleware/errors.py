"""Every error that the library raises itself, by who is to blame.

    SSEError
    ├── ConfigurationError (also ValueError)   the operator: a setting is out of its bounds
    ├── EventFormatError (also ValueError)     the caller: a field would break the event stream
    └── StoreError                             the store: it is out of reach, or has refused

Those of a value say what, what it got, and what is allowed, in words and in fields.
"""


class SSEError(Exception):
    """The root: catch it to catch all of ours."""


class _RefusedValueError(SSEError, ValueError):
    def __init__(self, name: str, got: object, allowed: str) -> None:
        super().__init__(f"{name} is {_shown(got)}, allowed is {allowed}")
        self.name = name
        self.got = got
        self.allowed = allowed


class ConfigurationError(_RefusedValueError):
    """A setting is out of its bounds: `name` (argument or variable), `got`, `allowed`."""


class EventFormatError(_RefusedValueError):
    """A field of an event cannot be encoded: `name` (the field), `got`, `allowed`."""


class StoreError(SSEError):
    """A store of events cannot be reached, or has refused; another attempt may succeed."""


def _shown(value: object, limit: int = 80) -> str:
    """Quote `value` on one line and at most `limit` characters long: it may be hostile."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"
