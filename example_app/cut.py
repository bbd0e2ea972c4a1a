"""Cut connections on purpose, so that a visitor sees what a tunnel or a proxy does to a stream.

`POST /cut/<stream id>` aborts the connection on which that stream is being sent. ASGI has no
message for that, so the transport is taken from the server; this works with uvicorn.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CUT_PATH: Final = "/cut/"


class Cutter:
    """Wrap `app`, and record the connection of each stream.

    Args:
        app: the app, with the middleware that gives each stream its id.

    """

    def __init__(self, app: ASGIApp) -> None:
        """Start without connections."""
        self.app = app
        self._transports: defaultdict[str, set[asyncio.Transport]] = defaultdict(set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Cut a stream, or run the app and record its stream while it runs."""
        path: str = scope.get("path", "")
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif path.startswith(CUT_PATH) and scope["method"] == "POST":
            await self._cut(path.removeprefix(CUT_PATH))(scope, receive, send)
        else:
            await self._watch(scope, receive, send)

    async def _watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = _transport_of(receive)
        stream_id = ""

        async def recording_send(message: Message) -> None:
            nonlocal stream_id
            if transport is not None and message["type"] == "http.response.start":
                stream_id = dict(message["headers"]).get(b"x-stream-id", b"").decode()
                if stream_id:
                    self._transports[stream_id].add(transport)
            await send(message)

        try:
            await self.app(scope, receive, recording_send)
        finally:
            if stream_id and transport is not None:
                self._remove(stream_id, transport)

    def _remove(self, stream_id: str, transport: asyncio.Transport) -> None:
        self._transports[stream_id].discard(transport)
        if not self._transports[stream_id]:
            del self._transports[stream_id]

    def _cut(self, stream_id: str) -> Response:
        transports = self._transports.get(stream_id, ())
        for transport in transports:
            transport.abort()
        if transports:
            return Response(status_code=204)
        return JSONResponse({"detail": "nothing is being sent of that stream"}, status_code=404)


def _transport_of(receive: Receive) -> asyncio.Transport | None:
    """Return the connection of a request, `None` if the server does not expose it."""
    cycle: Any = getattr(receive, "__self__", None)  # uvicorn's RequestResponseCycle
    return getattr(cycle, "transport", None)
