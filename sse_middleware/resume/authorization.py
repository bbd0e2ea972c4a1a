"""Access: who may read a stream that somebody has opened.

To whoever may not, it does not exist.
"""

import hmac
import inspect
import logging
from typing import TypeGuard

from starlette.types import Scope

from sse_middleware.http.request import RequestBody, identity_of, place_of
from sse_middleware.http.response_head import RawHeaders, request_headers, unpacked
from sse_middleware.stores.base import LogInfo, LogSnapshot
from sse_middleware.stream.context import Context

logger = logging.getLogger("sse_middleware")

CORS = b"access-control-"


class Authorization:
    """Tell who may read what, by what requests say of themselves.

    Args:
        setup: what all requests share.
    """

    def __init__(self, setup: Context) -> None:
        self._setup = setup

    def is_its_own(self, found: LogSnapshot | None, scope: Scope) -> TypeGuard[LogSnapshot]:
        """Tell whether a log was opened by whoever asks, where it asks now.

        Who asks is found out for a log that is not there, too: what that takes tells nobody of it.
        """
        headers = request_headers(scope.get("headers") or ())
        cookies = self._setup.options.identity_cookies
        identity = identity_of(scope, headers, self._setup.identify, cookies)
        if found is None or found.info.path != place_of(scope):
            return False
        info = found.info
        if identity is None or (info.identity and not hmac.compare_digest(identity, info.identity)):
            return False
        origin = headers.get(b"origin", b"").decode("latin-1")
        return origin == info.origin or not _is_for_one_origin(unpacked(info.headers))

    async def may_go_on(self, info: LogInfo, scope: Scope, body: RequestBody | None = None) -> bool:
        """Tell whether whoever has opened a log may read it still, and asks for the same."""
        if body is not None:
            digest = body.digest()
            if digest is None or digest != info.body_digest:
                return False
        left = self._setup.seconds_left(scope)
        if left is not None and not left:
            return False
        if self._setup.authorize_resume is None:
            return True
        try:
            allowed = self._setup.authorize_resume(scope, info)
            return bool(await allowed if inspect.isawaitable(allowed) else allowed)
        except Exception:
            logger.exception("authorize_resume has failed; the resume is refused")
            return False

    async def may_read_named(self, found: LogSnapshot | None, scope: Scope) -> bool:
        """Tell whether whoever asks for a stream by its name has opened it, and may read on."""
        headers = request_headers(scope.get("headers") or ())
        identity = identity_of(scope, headers, self._setup.identify, ())
        if found is None or not (identity and found.info.identity):
            return False
        its_own = hmac.compare_digest(identity, found.info.identity)
        return its_own and await self.may_go_on(found.info, scope)


def _is_for_one_origin(headers: RawHeaders) -> bool:
    """Tell whether a response lets the pages of one origin read it, and so is not for another."""
    allowed = [value for name, value in headers if name.lower() == CORS + b"allow-origin"]
    return bool(allowed) and allowed != [b"*"]
