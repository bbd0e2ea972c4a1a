"""Routes: where a request goes, which marks lie on the way, and a bounded name for it.

A mark is options for one endpoint. It lies on the endpoint itself, by `@streaming(...)`, or on a
path glob, in the middleware's arguments. All is asked behind the app's own routing, whose result
Starlette and FastAPI leave in the scope: to route twice costs, and FastAPI's has side effects.
"""

import fnmatch
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any, Literal, TypeVar, Unpack, overload

from starlette.routing import Match

from sse_middleware.config.arguments import EndpointArguments
from sse_middleware.config.options import validate
from sse_middleware.errors import ConfigurationError
from sse_middleware.protocol.client_kinds import ClientKind

logger = logging.getLogger("sse_middleware")

UNMATCHED = "unmatched"

StreamKey = Callable[[Any], str]
"""Tells from the scope of a request which stream it asks for."""

_ATTRIBUTE = "__sse_streaming__"
_CLIENT_KINDS = (ClientKind.EVENTSOURCE, ClientKind.PLAIN, ClientKind.OPENAI)

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Mark:
    """Options of one endpoint.

    Attributes:
        name: what metrics and logs call it where it has no route template.
        family: the family of all its clients, `None` where each shows its own.
        overrides: fields of `Options` that go before all others.
        stream_key: which stream a request asks for, where the app numbers its events and does not
            keep them; `None` everywhere else.
    """

    __slots__ = ("__weakref__", "family", "name", "overrides", "stream_key")

    def __init__(
        self,
        *,
        name: str | None,
        family: str | None,
        overrides: Mapping[str, object],
        stream_key: StreamKey | None = None,
    ) -> None:
        if family is not None and family not in _CLIENT_KINDS:
            raise ConfigurationError("family", family, " or ".join(_CLIENT_KINDS))
        self.name = name
        self.family = None if family is None else ClientKind(family)
        self.overrides = validate(overrides, per_endpoint=True)
        self.stream_key = stream_key

    def __call__(self, endpoint: Endpoint) -> Endpoint:
        """Lay the mark on `endpoint` and return it."""
        setattr(endpoint, _ATTRIBUTE, self)
        return endpoint


@overload
def streaming(endpoint: Endpoint, /) -> Endpoint: ...
@overload
def streaming(
    *,
    name: str | None = None,
    family: str | None = None,
    ids: Literal["app"] | None = None,
    stream_key: StreamKey | None = None,
    **overrides: Unpack[EndpointArguments],
) -> Mark: ...
def streaming(
    endpoint: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    family: str | None = None,
    ids: str | None = None,
    stream_key: StreamKey | None = None,
    **overrides: Any,
) -> Any:
    """Mark an endpoint as one that streams, with options of its own.

    Write it below the framework's decorator (`@app.get(...)`), on a function, a class-based
    endpoint or one of its methods; or give it to the middleware for a path:
    `marks={"/chat/*": streaming(stream_max_seconds=600)}`.

    Args:
        endpoint: what is marked, where no options are given.
        name: what metrics and logs call it where it has no route template.
        family: take all its clients for `eventsource`, `plain` or `openai`.
        ids: `"app"` where the app gives its events ids of its own, but keeps no events: we keep
            them, and resume by those ids.
        stream_key: then, which stream a request asks for: a function of its scope.
        **overrides: fields of `Options`; `enabled=False` leaves the endpoint alone.

    Raises:
        ConfigurationError: a value is not allowed.
        TypeError: there is no such option, or it is one of the whole app.
    """
    if ids not in (None, "app"):
        raise ConfigurationError("ids", ids, "app")
    if (ids is None) != (stream_key is None):
        raise TypeError('ids="app" and stream_key belong together')
    mark = Mark(name=name, family=family, overrides=overrides, stream_key=stream_key)
    return mark if endpoint is None else mark(endpoint)


def get_mark(endpoint: object, method: str = "") -> Mark | None:
    """Return the mark that lies on `endpoint`, or on its method for the HTTP `method`."""
    if type(endpoint) is FunctionType and not endpoint.__dict__:
        return None  # as most are
    while endpoint is not None:
        for place in (getattr(endpoint, method.lower(), None) if method else None, endpoint):
            mark = getattr(place, _ATTRIBUTE, None)
            if isinstance(mark, Mark):
                return mark
        endpoint = getattr(endpoint, "func", None)  # functools.partial
    return None


def route_name(scope: Mapping[str, Any], mark: Mark | None = None) -> str:
    """Return the template of the route that the app has found, else the mark's name.

    FastAPI leaves its route in the scope, and so does Starlette of late; before, the endpoint and
    the router. Litestar leaves the template. The raw path is never a name.
    """
    route = scope.get("route")
    if route is None and scope.get("endpoint") is not None:
        route = _route_to(scope["endpoint"], getattr(scope.get("router"), "routes", ()))
    for name in (getattr(route, "path", None), scope.get("path_template")):
        if isinstance(name, str):
            return name
    return (mark.name if mark else None) or UNMATCHED


def _route_to(endpoint: object, routes: Iterable[Any]) -> object:
    for route in routes:
        if getattr(route, "endpoint", None) is endpoint:
            return route
        inner = _route_to(endpoint, getattr(route, "routes", None) or ())
        if inner is not None:
            return inner
    return None


def route_ahead(scope: dict[str, Any], app: object) -> tuple[object, str]:
    """Return the endpoint to which Starlette's routes will lead a request, and its template.

    Where none will, they are `None` and `""`.

    It is asked before the app runs, and seldom: to route twice costs.
    """
    app = scope.get("app", app)
    while app is not None and not hasattr(app, "routes"):
        app = getattr(app, "app", None)
    try:
        return _matched(getattr(app, "routes", ()), scope)
    except Exception:
        logger.debug("the routes cannot be asked ahead", exc_info=True)
        return None, ""


def _matched(routes: Iterable[Any], scope: dict[str, Any]) -> tuple[object, str]:
    for route in routes:
        match, child = route.matches({**scope})
        if match is Match.FULL:
            inner = getattr(route, "routes", None)
            if not inner and hasattr(route, "effective_candidates"):
                inner = route.effective_candidates()  # a router that FastAPI has included
            if inner:
                return _matched(inner, {**scope, **child})
            named = getattr(route, "original_route", route)
            return child.get("endpoint"), str(getattr(named, "path", ""))
    return None, ""


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Return what matches each path that `glob` does."""
    return re.compile(fnmatch.translate(glob))
