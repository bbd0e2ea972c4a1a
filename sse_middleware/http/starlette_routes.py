"""What Starlette's routes tell before the app runs: endpoints, their parameters and marks."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from string import Formatter
from types import MappingProxyType
from typing import Any, NamedTuple

from starlette.routing import Match

from sse_middleware.http.routes import Mark, fields_allowed, get_mark

logger = logging.getLogger("sse_middleware")


class RouteAhead(NamedTuple):
    """What Starlette's routes match before the app runs.

    Attributes:
        endpoint: the endpoint, `None` if no route matches.
        template: the template of its path.
        path_params: the parameters in the path.
    """

    endpoint: object = None
    template: str = ""
    path_params: Mapping[str, Any] = MappingProxyType({})


def route_ahead(scope: dict[str, Any], app: object) -> RouteAhead:
    """Return the endpoint that Starlette's routes match, before the app runs.

    Only few requests are matched here, since a second routing has a cost.
    """
    try:
        return _matched(_routes_in(scope.get("app", app)), scope)
    except Exception:
        logger.debug("the routes cannot be matched before the app runs", exc_info=True)
        return RouteAhead()


def _matched(routes: Iterable[Any], scope: dict[str, Any]) -> RouteAhead:
    for route in routes:
        match, child = route.matches({**scope})
        if match is Match.FULL:
            inner = _inner_routes(route)
            if inner:
                return _matched(inner, {**scope, **child})
            named = getattr(route, "original_route", route)
            template = str(getattr(named, "path", ""))
            return RouteAhead(child.get("endpoint"), template, child.get("path_params") or {})
    return RouteAhead()


def has_mark(app: object, wanted: Callable[[Mark], bool]) -> bool:
    """Return whether any endpoint of Starlette's routes has such a mark, or may have one."""
    try:
        return any(map(wanted, _marks(_routes_in(app))))
    except Exception:
        logger.debug("the routes cannot be searched for marks", exc_info=True)
        return True


def _routes_in(app: object) -> Iterable[Any]:
    """Return the routes of an app, or of the first one inside it that has some."""
    while app is not None and not hasattr(app, "routes"):
        app = getattr(app, "app", None)
    return getattr(app, "routes", ())


def _marks(routes: Iterable[Any]) -> Iterator[Mark]:
    for route in routes:
        inner = _inner_routes(route)
        if inner:
            yield from _marks(inner)
        yield from _marks_of(route)


def _marks_of(route: Any) -> list[Mark]:
    """Return the marks of a route that is no router."""
    found = (get_mark(getattr(route, "endpoint", None), method) for method in ("GET", "POST"))
    return list(dict.fromkeys(mark for mark in found if mark is not None))


def _inner_routes(route: Any) -> Any:
    inner = getattr(route, "routes", None)
    if not inner and hasattr(route, "effective_candidates"):
        return route.effective_candidates()  # a router that FastAPI has included
    return inner


def warn_of_names(app: object) -> None:
    """Log each name of streams with a field that is no parameter of its route."""
    try:
        for path, name, parameters in _names(_routes_in(app), frozenset()):
            if not _fields(name) <= parameters:
                logger.error(
                    "The name of the streams of %s is %r, allowed is %s. Its requests will fail.",
                    path,
                    name,
                    fields_allowed(sorted(parameters)),
                )
    except Exception:
        logger.debug("the routes cannot be searched for names", exc_info=True)


def _names(routes: Any, outer: frozenset[str]) -> Iterator[tuple[str, str, frozenset[str]]]:
    for route in routes:
        parameters = outer | frozenset(getattr(route, "param_convertors", ()))
        inner = _inner_routes(route)
        if inner:
            yield from _names(inner, parameters)
        for mark in _marks_of(route):
            if isinstance(mark.stream_name, str) and hasattr(route, "param_convertors"):
                yield route.path, mark.stream_name, parameters


def _fields(name: str) -> set[str]:
    """Return the fields in braces, without attributes and indexes."""
    parsed = (field for _, field, _, _ in Formatter().parse(name) if field is not None)
    return {field.split(".")[0].split("[")[0] for field in parsed}
