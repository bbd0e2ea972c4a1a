"""The failures of sources, each with the status that a client gets for it.

UpstreamError (also HTTPException)   a source has failed
└── NoFirstEventError                it has sent no event, or none in time
"""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.status import HTTP_502_BAD_GATEWAY

from sse_middleware.errors import SSEError


class UpstreamError(SSEError, HTTPException):
    """A source has failed.

    If an endpoint raises it before its response has started, Starlette and FastAPI respond with
    its status. The client gets no other detail.

    Args:
        reason: what has failed, for logs.
        status_code: the status for the client.
        headers: further headers for it, such as `Retry-After`.
        upstream_status: the status that the upstream has sent, `None` without one.
        body: the beginning of the body that the upstream has sent with it, for logs.

    Attributes:
        reason, upstream_status, body: as the arguments.
    """

    def __init__(
        self,
        reason: str,
        *,
        status_code: int = HTTP_502_BAD_GATEWAY,
        headers: Mapping[str, str] | None = None,
        upstream_status: int | None = None,
        body: bytes = b"",
    ) -> None:
        HTTPException.__init__(self, status_code, headers=dict(headers or {}))
        self.reason = reason
        self.upstream_status = upstream_status
        self.body = body

    def __str__(self) -> str:
        return self.reason


class NoFirstEventError(UpstreamError):
    """A source has ended without an event, or has sent none in time."""
