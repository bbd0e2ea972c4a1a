"""Lua scripts: loaded from the package, and called by their digest or by their text."""

from hashlib import sha1
from importlib.resources import files
from typing import Final, NamedTuple

Argument = str | bytes
"""Never an int: hiredis crashes the process if a signal arrives while it converts one."""
Command = tuple[Argument, ...]


class Script(NamedTuple):
    """A Lua script.

    Attributes:
        text: its source.
        sha: the digest under which Redis caches it.
    """

    text: str
    sha: str

    def call(self, keys: tuple[str, ...], *arguments: Argument) -> Command:
        """Return the command that runs the script if Redis has it; it answers NOSCRIPT if not."""
        return ("EVALSHA", self.sha, str(len(keys)), *keys, *arguments)

    def call_with_text(self, keys: tuple[str, ...], *arguments: Argument) -> Command:
        """Return the command that runs the script in any case."""
        return ("EVAL", self.text, str(len(keys)), *keys, *arguments)

    def with_text(self, command: Command) -> Command:
        """Return the command of `call` as `call_with_text` returns it."""
        return ("EVAL", self.text, *command[2:])


def load_script(package: str, name: str) -> Script:
    """Return the script in the file `lua/NAME.lua` of a package."""
    text = files(package).joinpath(f"lua/{name}.lua").read_text()
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def milliseconds(seconds: float) -> str:
    """Return an expiry for Redis, which is not 0."""
    return str(max(1, int(seconds * 1000)))


# XADD creates a key that never expires, and Redis has no command that also sets its expiry.
_APPEND: Final = load_script("sse_middleware.stores.redis", "append")
_CLAIM: Final = load_script("sse_middleware.stores.redis", "claim")
_RELEASE: Final = load_script("sse_middleware.stores.redis", "release")


def append(key: str, expiry: str, *arguments: Argument) -> Command:
    """Return the XADD command to a stream that may be new; a new stream has this expiry."""
    return _APPEND.call_with_text((key,), expiry, *arguments)


def claim(key: str, expiry: str, stream_id: str) -> Command:
    """Return the command that takes or renews a claim, and answers the stream that has it."""
    return _CLAIM.call_with_text((key,), expiry, stream_id)


def release(key: str, stream_id: str) -> Command:
    """Return the command that gives up the claim of a stream."""
    return _RELEASE.call_with_text((key,), stream_id)
