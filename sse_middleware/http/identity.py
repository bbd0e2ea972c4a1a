"""The identity that a request belongs to, and the address of its client.

The address in a forwarding header counts only if a trusted proxy has sent it. Of the addresses in
that header, the last one that is not itself a trusted proxy counts: any client can write the ones
before it.
"""

import functools
import hashlib
import inspect
import ipaddress
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

from sse_middleware.config.fields import UNIX
from sse_middleware.config.options import Options
from sse_middleware.http.request import SSERequest

logger = logging.getLogger("sse_middleware")

Identify = Callable[[Any], str | None]
"""Returns the identity that a scope belongs to, `None` or `""` if it has none."""
AsyncIdentify = Callable[[Any], Awaitable[str | None]]
"""The same as a coroutine function."""

_LOADED: Final = "sse_middleware.identity"

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LONGEST: Final = 64
# An address, perhaps with a port; an IPv6 address with a port is in brackets (RFC 7239 6).
_HOP: Final = re.compile(
    r"\[([0-9A-Fa-f:.]+)\](?::\d{1,5})?|(\d{1,3}(?:\.\d{1,3}){3})(?::\d{1,5})?|([0-9A-Fa-f:.]+)"
)
_FOR: Final = re.compile(r'[ \t]*for=(?:"([^"\\]*)"|([^", \t]*))[ \t]*', re.IGNORECASE)
_NO_VALUES: Final = frozenset(
    (b"", b"undefined", b"null", b"none", b"nil", b"nan", b"false", b"[object object]")
)
"""What a variable without a value becomes in a text, in the languages of clients."""
_SCHEMES: Final = (b"basic", b"bearer", b"token")
_PREFIX_BITS: Final = 64
"""A client that has one IPv6 address has all addresses with this prefix."""


class AwaitedIdentity:
    """An `Identify` for an async function, which is awaited before the app runs.

    Args:
        function: the operator's function.
    """

    def __init__(self, function: AsyncIdentify) -> None:
        self._function = function

    @classmethod
    def of(cls, identify: Identify | AsyncIdentify | None) -> "AwaitedIdentity | None":
        """Return one for a function that is async, `None` for another one."""
        inner = identify
        while isinstance(inner, functools.partial):
            inner = inner.func
        call = inner if inspect.isroutine(inner) else getattr(inner, "__call__", None)  # noqa: B004
        return cls(identify) if inspect.iscoroutinefunction(call) else None  # type: ignore[arg-type]

    async def load(self, scope: Any) -> None:
        """Await the function, and store its result or its exception in a scope."""
        try:
            scope[_LOADED] = await self._function(scope)
        except Exception as exc:  # noqa: BLE001 - raised when the identity is asked for
            scope[_LOADED] = exc

    def __call__(self, scope: Any) -> str | None:
        """Return the result in a scope."""
        found = scope.get(_LOADED)
        if isinstance(found, Exception):
            raise found
        identity: str | None = found
        return identity


class Identities:
    """Determine the identities that requests belong to, as digests.

    Args:
        identify: the operator's function, which has precedence.
        cookies: the names of the cookies that identify a client without an `Authorization`.
        secret: the key of the digests. Without it, a password could be guessed from its digest.

    Attributes:
        has_function: whether there is an operator's function.
    """

    def __init__(
        self, identify: Identify | None, cookies: Iterable[str] = (), secret: bytes = b""
    ) -> None:
        self.has_function = identify is not None
        self._identify = identify
        self._cookies = [name.encode() for name in cookies]
        self._key = hashlib.blake2b(secret).digest() if secret else b""

    def of(self, request: SSERequest) -> str | None:
        """Return a digest of the identity that a request belongs to.

        Returns:
            Hexadecimal digits; `""` if the request carries no identity; `None` if `identify` has
            raised, so that no request can be assigned to an identity.
        """
        if self._identify is not None:
            try:
                identity = self._identify(request.scope)
            except Exception:
                logger.exception("identify(scope) has failed: the request cannot resume a stream")
                return None
            if not identity:  # an `Authorization` that all requests share must not count instead
                return ""
            return self._digest(b"identity", str(identity).encode("utf-8", "surrogatepass"))
        headers = request.headers
        authorization = headers.get(b"authorization")
        if authorization and _is_credential(authorization):
            return self._digest(b"authorization", authorization)
        if not self._cookies or b"cookie" not in headers:
            return ""
        found = _parse_cookies(headers[b"cookie"])
        named = [found[name] for name in self._cookies if name in found]
        return self._digest(b"cookies", *named) if any(map(_is_value, named)) else ""

    def _digest(self, kind: bytes, *values: bytes) -> str:
        digest = hashlib.blake2b(key=self._key, digest_size=16, person=kind)
        for value in values:
            digest.update(b"%d:%b" % (len(value), value))
        return digest.hexdigest()


def identity_secret(options: Options, *, is_shared: bool) -> bytes:
    """Return the key of the digests of identities; processes that share streams or limits share it.

    What is stored in Redis is keyed there, with a secret that the processes share.
    """
    if options.secret or options.redis_url or is_shared:
        return options.secret.encode()
    return secrets.token_bytes()


class TrustedProxies:
    """Determine the addresses of clients.

    Args:
        proxies: the addresses and networks of the proxies, and `unix` for unix sockets.
    """

    def __init__(self, proxies: Iterable[str]) -> None:
        trusted = set(proxies)
        self._trusts_unix = UNIX in trusted
        self._networks = [ipaddress.ip_network(text, strict=False) for text in trusted - {UNIX}]

    def client_address(self, request: SSERequest) -> str | None:
        """Return the address of a client (its network for IPv6), `None` if it has none."""
        host = request.peer_host
        if ":" not in host and not (self._networks or self._trusts_unix):
            return host[:_LONGEST] or None  # parsing it takes longer than all else here
        peer = _parsed(host)
        trusted = self._trusts_unix if not host else peer is not None and self._trusts(peer)
        if not trusted:
            return _shown(peer) or host[:_LONGEST] or None
        forwarded = {
            _shown(self._last_untrusted(peer, hops)) for hops in _forwarded_hops(request) if hops
        }
        # A proxy writes one of the two headers and may pass on the other one unchanged: if they
        # differ, the client has forged one.
        return forwarded.pop() if len(forwarded) == 1 else _shown(peer)

    def _last_untrusted(self, peer: _Address | None, hops: Sequence[str]) -> _Address | None:
        address = peer
        for hop in reversed(hops):
            parsed = _parsed(hop)
            if parsed is None:  # "unknown", or forged
                break
            address = parsed
            if not self._trusts(parsed):
                break
        return address

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def _is_credential(authorization: bytes) -> bool:
    """Return whether an `Authorization` has more than a scheme (RFC 9110 11.6.2)."""
    scheme, space, credentials = authorization.strip().partition(b" ")
    return _is_value(credentials if space else scheme) and scheme.lower() + space not in _SCHEMES


def _is_value(text: bytes) -> bool:
    """Return whether a text is the value of a variable, and not what a page sends without one."""
    return text.strip(b' \t"').lower() not in _NO_VALUES


def _parse_cookies(header: bytes) -> dict[bytes, bytes]:
    """Return the values of cookies by name; as in frameworks, the last one of a name counts."""
    pairs = (pair.partition(b"=") for pair in header.split(b";"))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def _forwarded_hops(request: SSERequest) -> tuple[list[str], list[str]]:
    """Return the hops in `X-Forwarded-For`, and those in `Forwarded` (RFC 7239)."""
    plain = request.headers.get(b"x-forwarded-for")
    elements = request.headers.get(b"forwarded")
    # A quoted string may contain a comma, but no address does: the parts are not addresses.
    return (
        [] if plain is None else plain.decode("latin-1").split(","),
        [] if elements is None else [_for(one) for one in elements.decode("latin-1").split(",")],
    )


def _for(element: str) -> str:
    found = [match for part in element.split(";") if (match := _FOR.fullmatch(part)) is not None]
    return found[0][1] or found[0][2] if len(found) == 1 else ""


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
