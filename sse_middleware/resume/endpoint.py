"""The endpoint that serves a stream by its name, after a reload or on another device."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from sse_middleware.http.routes import streaming
from sse_middleware.stream.current import IN_SCOPE, CurrentStream


class ResumeEndpoint:
    """An ASGI app for a route; created by `resume_endpoint`."""

    def __init__(self, name: str | Callable[[Any], str]) -> None:
        self._name = name
        streaming(enabled=False)(self)  # its response is no new stream

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream, or 204 if none is open."""
        if scope["type"] != "http":
            raise RuntimeError(f"a resume_endpoint is for http, got {scope['type']}")
        if scope["method"] != "GET":
            response = Response(
                status_code=HTTPStatus.METHOD_NOT_ALLOWED.value, headers={"allow": "GET"}
            )
            await response(scope, receive, send)
            return
        if isinstance(self._name, str):
            name = self._name.format_map(scope.get("path_params", {}))
        else:
            name = self._name(scope)
        await scope.get(IN_SCOPE, CurrentStream()).follow(name, scope, receive, send)


def resume_endpoint(name: str | Callable[[Any], str]) -> ResumeEndpoint:
    """Return an endpoint that serves a stream which a handler has named.

        app.add_route("/chats/{chat}/live", resume_endpoint("chat:{chat}"))

    A client with the identity that has opened the stream, as `SSEMiddleware(identify=...)` returns
    it, gets all events that are kept and then the new ones. Other clients get a 204, and so do all
    clients after the end of the stream.

    Args:
        name: the name, with the route's path parameters in braces, or a function of the scope.
    """
    return ResumeEndpoint(name)
