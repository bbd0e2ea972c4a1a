"""The endpoint that serves a stream by its name, after a reload or on another device."""

from http import HTTPStatus
from typing import Any, Final, Literal

from starlette.responses import Response

from sse_middleware.errors import ConfigurationError
from sse_middleware.http.routes import StreamName, name_in, streaming
from sse_middleware.stream.current import IN_SCOPE, CurrentStream

_METHODS: Final = ("GET", "POST", "DELETE")


class ResumeEndpoint:
    """An ASGI app for a route; created by `resume_endpoint`."""

    def __init__(self, name: StreamName, *, replays: bool) -> None:
        self._name = name
        self._replays = replays
        streaming(enabled=False)(self)  # its response is no new stream

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the stream, or 204 if none is open; or stop it."""
        if scope["type"] != "http":
            raise RuntimeError(f"a resume_endpoint is for http, got {scope['type']}")
        if scope["method"] not in _METHODS:
            response = Response(
                status_code=HTTPStatus.METHOD_NOT_ALLOWED.value,
                headers={"allow": ", ".join(_METHODS)},
            )
            await response(scope, receive, send)
            return
        name = name_in(self._name, scope)
        current: CurrentStream = scope.get(IN_SCOPE, CurrentStream())
        await current.follow(name, scope, receive, send, replays=self._replays)


def resume_endpoint(
    name: StreamName, *, finished: Literal["replay"] | None = None
) -> ResumeEndpoint:
    """Return an endpoint that serves a stream which a handler has named.

        app.add_route("/chats/{chat}/live", resume_endpoint("chat:{chat}"))

    A GET with the identity that has opened the stream gets all events that are kept and then the
    new ones, or those after the event `?after=N` (or `?starting_after=N`, or `Last-Event-ID`). It
    gets 204 if no stream is running. A POST or DELETE stops the stream, and always gets 204. With
    another identity, there is no stream.

    Each client gets its own kind of stream. One that is no `EventSource` gets exactly the bytes of
    the app; if some that it needs are no longer kept, it gets 204.

    Args:
        name: the name, with the route's path parameters in braces, or a function of the scope.
        finished: `"replay"` if a stream that has ended is sent too, as long as it is kept.

    Raises:
        ConfigurationError: `finished` is not allowed.
    """
    if finished not in (None, "replay"):
        raise ConfigurationError("finished", finished, "replay")
    return ResumeEndpoint(name, replays=finished == "replay")
