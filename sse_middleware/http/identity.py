"""Addresses: from where a request comes, which only a trusted proxy may say in another's place.

Of the addresses that it tells, the one that counts is the last that is not itself a trusted proxy:
whatever stands before it, anybody may have written.
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sse_middleware.config.fields import UNIX

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LONGEST = 64
# An address, perhaps with a port; one of IPv6 then stands in brackets (RFC 7239 6).
_HOP = re.compile(
    r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|(\d{1,3}(?:\.\d{1,3}){3})(?::\d{1,5})?|([0-9A-Fa-f:.]+)"
)
_FOR = re.compile(r'(?:^|;)[ \t]*for=(?:"([^"\\]*)"|([^";, \t]*))[ \t]*(?=;|$)', re.IGNORECASE)
_PREFIX_BITS = 64
"""Whoever has one address of IPv6 has all that begin so."""


class Addresses:
    """Tell where requests come from.

    Args:
        trusted: the addresses and networks of proxies, and `unix`.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        told = set(trusted)
        self._trusts_unix = UNIX in told
        self._networks = [ipaddress.ip_network(text, strict=False) for text in told - {UNIX}]

    def of(self, scope: Mapping[str, Any]) -> str | None:
        """Return a client's address, that of its network for IPv6, `None` where it has none."""
        host = str((scope.get("client") or ("",))[0])
        peer = _parsed(host)
        trusted = self._trusts_unix if not host else peer is not None and self._trusts(peer)
        if not trusted:
            return _shown(peer) or host[:_LONGEST] or None
        told = {
            _shown(self._last_untrusted(peer, hops))
            for hops in _told_hops(scope.get("headers") or ())
            if hops
        }
        # A proxy writes one of the headers and may pass the other one on as it came: where they
        # differ, one was made up.
        return told.pop() if len(told) == 1 else _shown(peer)

    def _last_untrusted(self, peer: _Address | None, hops: Sequence[str]) -> _Address | None:
        address = peer
        for hop in reversed(hops):
            told = _parsed(hop)
            if told is None:  # "unknown", or something made up
                break
            address = told
            if not self._trusts(told):
                break
        return address

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def _told_hops(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[str], list[str]]:
    """Return the hops that `X-Forwarded-For` tells, and those of `Forwarded` (RFC 7239)."""
    plain: list[str] = []
    forwarded: list[str] = []
    for name, value in headers:
        if name == b"x-forwarded-for":
            plain += value.decode("latin-1").split(",")
        elif name == b"forwarded":
            # A comma may stand in quotes, but in no address: what is cut there is not believed.
            forwarded += map(_forwarded_for, value.decode("latin-1").split(","))
    return plain, forwarded


def _forwarded_for(element: str) -> str:
    found = _FOR.findall(element)
    return found[0][0] or found[0][1] if len(found) == 1 else ""


def _parsed(text: str) -> _Address | None:
    text = text.strip(" \t").partition("%")[0]
    found = _HOP.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    try:
        address = ipaddress.ip_address(found[1] or found[2] or found[3])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _shown(address: _Address | None) -> str | None:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _PREFIX_BITS), strict=False))
    return None if address is None else str(address)
