"""The endpoint that serves a stream by its name or its public id, after a reload or elsewhere."""

from http import HTTPStatus
from typing import Any, Final, Literal, overload

from starlette.requests import Request
from starlette.responses import Response

from sse_middleware.errors import ConfigurationError
from sse_middleware.http.routes import StreamName, name_in, streaming
from sse_middleware.stream.current import IN_SCOPE, CurrentStream, StreamCell, current_in

_METHODS: Final = ("GET", "HEAD", "POST", "DELETE")
_ALLOW: Final = {"allow": ", ".join((*_METHODS, "OPTIONS"))}


class ResumeEndpoint:
    """An ASGI app for a route; created by `resume_endpoint`."""

    def __init__(self, name: StreamName | None, *, replays: bool) -> None:
        self._name = name
        self._replays = replays
        streaming(enabled=False, stream_name=name)(self)  # its response is no new stream

    # Starlette calls it as an ASGI app, and `add_route` has the type of a function of a request.
    @overload
    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None: ...
    @overload
    async def __call__(self, request: Request, /) -> Response: ...
    async def __call__(self, scope: Any, receive: Any = None, send: Any = None, /) -> Any:
        """Send the stream, or 204 if none is open; or stop it."""
        if scope["type"] != "http":
            raise RuntimeError(f"a resume_endpoint is for http, got {scope['type']}")
        if scope["method"] not in _METHODS:
            # Without CORS headers: a preflight request has no identity, and so no stream.
            is_asked = scope["method"] == "OPTIONS"
            status = HTTPStatus.NO_CONTENT if is_asked else HTTPStatus.METHOD_NOT_ALLOWED
            await Response(status_code=status.value, headers=_ALLOW)(scope, receive, send)
            return
        name = "" if self._name is None else name_in(self._name, scope)
        cell: StreamCell | None = scope.get(IN_SCOPE)
        current = CurrentStream() if cell is None else current_in(cell)
        await current.follow(name, scope, receive, send, replays=self._replays)


def resume_endpoint(
    name: StreamName | None = None, *, finished: Literal["replay"] | None = None
) -> ResumeEndpoint:
    """Return an endpoint that serves a stream which a handler has named, or by its public id.

        app.add_route("/chats/{chat}/live", resume_endpoint("chat:{chat}"))

    A GET with the identity that has opened the stream gets all events that are kept and then the
    new ones, or those after the event `?after=N`, counted from 1 (or `?starting_after=N`, the
    `sequence_number` in the JSON of the events if they have one, or `Last-Event-ID`). It gets 204
    if no stream is running. A POST or DELETE stops the stream, and always gets 204. With another
    identity, there is no stream. A HEAD gets the status and the headers of a GET, and an OPTIONS
    the allowed methods.

    A request with the header `X-Stream-ID` gets the stream that had this header in its response,
    whatever its name. The id is no secret: the identity gives access.

    Each client gets its own kind of stream. One that is no `EventSource` gets exactly the bytes of
    the app; if some that it needs are no longer kept, it gets 204.

    Args:
        name: the name, with the route's path parameters in braces, or a function of the scope;
            `None` if streams are served by `X-Stream-ID` only.
        finished: `"replay"` if a stream that has ended is sent too, as long as it is kept.

    Raises:
        ConfigurationError: an argument is not allowed.
    """
    if finished not in (None, "replay"):
        raise ConfigurationError("finished", finished, "replay")
    return ResumeEndpoint(name, replays=finished == "replay")
