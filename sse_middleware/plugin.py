"""One call for Starlette and FastAPI: the middleware in its right place."""

from typing import Any, Unpack

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from sse_middleware.config.arguments import OptionArguments
from sse_middleware.middleware import SSEMiddleware


def install(app: Starlette, **options: Unpack[OptionArguments]) -> None:
    """Put the middleware around `app`, outermost but for CORS; a second call does nothing.

    Outermost, since what stands between us and the server may buffer or time streams; behind CORS,
    since its headers belong on our own answers too.

    Args:
        app: a Starlette or FastAPI app that has not started.
        **options: those of `SSEMiddleware`.

    Raises:
        ConfigurationError: an option is not allowed.
        RuntimeError: the app has started.
        TypeError: there is no such option.
    """
    if app.middleware_stack is not None:
        raise RuntimeError("the app has started; install before it does")
    stack: list[Any] = app.user_middleware
    if any(entry.cls is SSEMiddleware for entry in stack):
        return
    SSEMiddleware(app, **options)  # a wrong option is told here and not at the first request
    place = 0
    while place < len(stack) and stack[place].cls is CORSMiddleware:
        place += 1
    stack.insert(place, Middleware(SSEMiddleware, **options))
