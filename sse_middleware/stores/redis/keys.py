"""The names of all Redis keys and topics.

Keys that one command or script uses together have the same hash tag (`{...}`), and so are on the
same node of a cluster. No key contains a channel's name, a stream's name or a client's identity:
these are secrets, so a digest replaces them.
"""

import hashlib
from typing import Final, NamedTuple

SCHEMA: Final = 1
"""Part of each key, so that two versions can share a Redis during an upgrade."""


class ChannelKeys(NamedTuple):
    """The keys of one channel.

    Attributes:
        log: a stream with its events.
        about: a hash with its counters.
        topic: where its events are published.
        seen: the prefix of the keys with each publisher's last sequence number.
    """

    log: str
    about: str
    topic: str
    seen: str


class Keys:
    """Build keys.

    Args:
        prefix: of all Redis keys.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}{SCHEMA}:"

    def log(self, stream_id: str) -> str:
        """Return the key of a stream's entries."""
        return f"{self._prefix}{{{stream_id}}}:log"

    def info(self, stream_id: str) -> str:
        """Return the key of a stream's metadata."""
        return f"{self._prefix}{{{stream_id}}}:info"

    def name(self, name_digest: str) -> str:
        """Return the key of the latest stream of a name."""
        return f"{self._prefix}{{{name_digest}}}:name"

    def claim(self, name_digest: str) -> str:
        """Return the key of the stream that has the claim to a name."""
        return f"{self._prefix}{{{name_digest}}}:claim"

    def lease(self, process: str) -> str:
        """Return the key that exists while a process lives."""
        return f"{self._prefix}{{{process}}}:lease"

    def inbox(self, process: str) -> str:
        """Return the key of the messages to a process."""
        return f"{self._prefix}{{{process}}}:inbox"

    def channel(self, channel: str) -> ChannelKeys:
        """Return the keys of a channel."""
        tag = f"{self._prefix}{{{digest(channel)}}}:"
        return ChannelKeys(f"{tag}channel", f"{tag}about", f"{tag}topic", f"{tag}seen:")

    def client_leases(self, client: str) -> tuple[str, str, str]:
        """Return the keys of a client's leases, of those taken from their owners, and of ages."""
        tag = f"{self._prefix}{{limit:{client}}}"
        return f"{tag}:leases", f"{tag}:lost", f"{tag}:ages"

    def secret(self) -> str:
        """Return the key of the secret that all processes share."""
        return f"{self._prefix}secret"

    def rate_prefix(self) -> str:
        """Return the prefix of the keys that count openings."""
        return f"{self._prefix}rate"


def digest(name: str) -> str:
    """Return the digest that replaces a name in a key."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
