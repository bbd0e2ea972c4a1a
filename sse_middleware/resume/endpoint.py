"""The endpoint that answers with a stream by its name, after a reload or on another device."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from sse_middleware.http.routes import streaming
from sse_middleware.stream.current import IN_SCOPE, CurrentStream


class ResumeEndpoint:
    """An ASGI app for a route; made by `resume_endpoint`."""

    def __init__(self, name: str | Callable[[Any], str]) -> None:
        self._name = name
        streaming(enabled=False)(self)  # what it answers with is no new stream

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with the stream, or 204 where none lives."""
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
    """Make an endpoint that answers with a stream which a handler has named.

        app.add_route("/chats/{chat}/live", resume_endpoint("chat:{chat}"))

    Whoever `SSEMiddleware(identify=...)` says has opened the stream gets all of it that is kept,
    then what comes; anybody else, and who comes when it has ended, gets a 204.

    Args:
        name: the name, with the route's path parameters in braces, or a function of the scope.
    """
    return ResumeEndpoint(name)
