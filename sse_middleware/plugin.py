"""One call for Starlette and FastAPI that adds the middleware at the right position."""

import inspect
from typing import Any, Unpack

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from sse_middleware.config.arguments import OptionArguments
from sse_middleware.config.options import Options
from sse_middleware.middleware import SSEMiddleware


def install(app: Starlette, **options: Unpack[OptionArguments]) -> None:
    """Add the middleware to `app` as the outermost one, but inside CORS.

    Middleware between it and the server could buffer streams or limit their time. CORS is outside,
    since its headers are also needed on the middleware's own responses. Further calls have no
    effect.

    Args:
        app: a Starlette or FastAPI app that has not started.
        **options: the options of `SSEMiddleware`.

    Raises:
        ConfigurationError: an option is not allowed.
        RuntimeError: the app has started.
        TypeError: there is no such option.
    """
    if app.middleware_stack is not None:
        raise RuntimeError("the app has started; install before it does")
    stack: list[Any] = app.user_middleware
    if any(_is_a(entry.cls, SSEMiddleware) for entry in stack):
        return
    Options.from_environ({}, **options)  # an invalid option raises here, not at the first request
    position = 0
    while position < len(stack) and _is_a(stack[position].cls, CORSMiddleware):
        position += 1
    stack.insert(position, Middleware(SSEMiddleware, **options))


def _is_a(layer: Any, wanted: type) -> bool:
    """Return whether a layer is of a class, or of a subclass; agents wrap classes in proxies."""
    layer_class, wanted = inspect.unwrap(layer), inspect.unwrap(wanted)
    return isinstance(layer_class, type) and issubclass(layer_class, wanted)
