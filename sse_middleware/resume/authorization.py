"""The permission to read a stream that another request has opened.

For a client without the permission, the response is the same as if the stream did not exist.
"""

import hmac
import inspect
import logging
from dataclasses import replace
from typing import TypeGuard

from sse_middleware.http.body_digest import BodyDigest
from sse_middleware.http.request import SSERequest
from sse_middleware.http.response_head import RawHeaders, parse_headers, serialize_headers
from sse_middleware.stores.base import LogInfo, LogSnapshot, seal_identity
from sse_middleware.stream.context import Context

logger = logging.getLogger("sse_middleware")

_CORS = b"access-control-"


class Authorization:
    """Decide whether a request may read a stream.

    Args:
        context: what all requests share.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def is_opened_by(
        self, found: LogSnapshot | None, request: SSERequest
    ) -> TypeGuard[LogSnapshot]:
        """Return whether a log was opened by the identity of a request, at its path and origin.

        The identity is also determined if there is no log, so that the time this takes does not
        show whether there is one.
        """
        identity = self._context.identities.of(request)
        if found is None or found.info.path != request.request_path:
            return False
        info = found.info
        if identity is None or (info.identity and not _is_of(identity, found)):
            return False
        return request.origin == info.origin or not _is_for_one_origin(parse_headers(info.headers))

    async def may_resume(
        self, info: LogInfo, request: SSERequest, body: BodyDigest | None = None
    ) -> bool:
        """Return whether the identity that opened a log may still read it, with the same body."""
        if body is not None:
            digest = body.hexdigest()
            if digest is None or digest != info.body_digest:
                return False
        left = self._context.credential_ttl(request.scope)
        if left is not None and not left:
            return False
        if self._context.authorize_resume is None:
            return True
        try:
            allowed = self._context.authorize_resume(request.scope, info)
            return bool(await allowed if inspect.isawaitable(allowed) else allowed)
        except Exception:
            logger.exception("authorize_resume has failed: the stream is not resumed")
            return False

    async def may_read_named(self, found: LogSnapshot | None, request: SSERequest) -> bool:
        """Return whether a request may read a stream by its name."""
        identity = self._context.identities.of(request)
        if found is None or not (identity and found.info.identity):
            return False
        return _is_of(identity, found) and await self.may_resume(found.info, request)


def cors_headers(info: LogInfo, request: SSERequest) -> RawHeaders:
    """Return the recorded CORS headers of a stream, if they are for the origin of a request."""
    headers = parse_headers(info.headers)
    if request.origin != info.origin and _is_for_one_origin(headers):
        return []
    return [pair for pair in headers if pair[0].lower().startswith(_CORS)]


def without_cors(info: LogInfo, request: SSERequest) -> LogInfo:
    """Return the description of a log without CORS headers that are for another origin."""
    headers = parse_headers(info.headers)
    if request.origin == info.origin or not _is_for_one_origin(headers):
        return info
    kept = [pair for pair in headers if not pair[0].lower().startswith(_CORS)]
    return replace(info, headers=serialize_headers(kept))


def _is_of(identity: str, found: LogSnapshot) -> bool:
    """Return whether an identity has opened a log."""
    sealed = seal_identity(identity, found.identity_key)
    return hmac.compare_digest(sealed, found.info.identity)


def _is_for_one_origin(headers: RawHeaders) -> bool:
    """Return whether CORS headers let pages of one origin only read a response."""
    allowed = [value for name, value in headers if name.lower() == _CORS + b"allow-origin"]
    return bool(allowed) and allowed != [b"*"]
