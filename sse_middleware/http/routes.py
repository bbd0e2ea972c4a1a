"""Routes: the mark of a request's endpoint, and a bounded name for its route.

A mark makes the streams of one endpoint resilient, and contains options for it. It is attached to
the endpoint itself, by `@streaming`, or to a path glob, by the middleware's arguments `marks` and
`mark` or `SSE_MARK`. The endpoint is known after the app has matched its routes: Starlette and
FastAPI store the result in the scope, a second match has a cost, and FastAPI's has side effects.
"""

import copy
import fnmatch
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import Formatter
from types import FunctionType
from typing import Any, Literal, TypeVar, Unpack, get_args, overload

from sse_middleware.config.arguments import EndpointArguments
from sse_middleware.config.fields import GLOBS_ALLOWED, is_glob, is_number
from sse_middleware.config.options import validate
from sse_middleware.errors import ConfigurationError
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.end_info import OnEnd
from sse_middleware.protocol.event_rules import Collect, EventRules, TransformOption

logger = logging.getLogger("sse_middleware")

UNMATCHED = "unmatched"

StreamKey = Callable[[Any], str]
"""Returns the key of the stream that a scope requests."""
StreamName = str | Callable[[Any], str]
"""The name of a stream, with path parameters in braces, or a function of the scope."""

_ATTRIBUTE = "__sse_streaming__"
_LONGEST_CACHE = 30 * 24 * 3600
"""Thirty days, in seconds."""
_NAMES = "text such as chat:{chat}, with path parameters in braces, or a function of the scope"
_WILDCARDS = re.compile(r"[*?[]")
Attach = Literal["never", "running", "kept"]
"""The streams of its name that a request follows instead of running the app."""
Rerun = Literal["always", "never"]
"""Whether the app runs for a client whose stream cannot be resumed."""
_CLIENT_KINDS = (ClientKind.EVENTSOURCE, ClientKind.PLAIN, ClientKind.OPENAI)

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Mark:
    """The mark of one endpoint, with its options.

    Attributes:
        name: the name in metrics and logs if the endpoint has no route template.
        family: the kind of all its clients, `None` to detect the kind of each.
        overrides: fields of `Options` that have precedence over all others.
        stream_name: the name of its streams, `None` if the handler sets it.
        stream_key: the function that returns the key of a requested stream if the app numbers its
            events but does not keep them, else `None`.
        attach: the streams that a request with the same name follows.
        cache_ttl: how long a finished stream is kept, `None` for `replay_ttl`.
        rerun: whether the app runs for a client whose stream cannot be resumed.
        on_end: is called with the events of each stream that has ended, `None` for nothing.
        rules: the rules for its events, `None` without any.
        collects: whether clients that accept no event stream get one JSON document.
        is_certain: whether all responses are streams; not so if a path glob matches more paths, or
            if only the settings mark the path.
    """

    __slots__ = (
        "__weakref__",
        "attach",
        "cache_ttl",
        "collects",
        "family",
        "is_certain",
        "name",
        "on_end",
        "overrides",
        "rerun",
        "rules",
        "stream_key",
        "stream_name",
    )

    def __init__(
        self,
        *,
        name: str | None,
        family: str | None,
        overrides: Mapping[str, object],
        stream_name: StreamName | None = None,
        stream_key: StreamKey | None = None,
        attach: Attach = "never",
        cache_ttl: float | None = None,
        rerun: Rerun = "always",
        on_end: OnEnd | None = None,
        rules: EventRules | None = None,
    ) -> None:
        if attach not in get_args(Attach):
            raise ConfigurationError("attach", attach, " or ".join(get_args(Attach)))
        if rerun not in get_args(Rerun):
            raise ConfigurationError("rerun", rerun, " or ".join(get_args(Rerun)))
        if cache_ttl is not None and not (cache_ttl and is_number(cache_ttl, 0, _LONGEST_CACHE)):
            raise ConfigurationError("cache_ttl", cache_ttl, f"above 0 to {_LONGEST_CACHE} seconds")
        if cache_ttl is not None and attach != "kept":
            raise TypeError('cache_ttl needs attach="kept"')
        if on_end is not None and not callable(on_end):
            raise ConfigurationError("on_end", on_end, "a function of an EndInfo and the events")
        if stream_name is not None and not _is_name(stream_name):
            raise ConfigurationError("the name of streams", stream_name, _NAMES)
        if family is not None and family not in _CLIENT_KINDS:
            raise ConfigurationError("family", family, " or ".join(_CLIENT_KINDS))
        self.name = name
        self.family = None if family is None else ClientKind(family)
        self.overrides = validate(overrides, per_endpoint=True)
        self.stream_name = stream_name
        self.stream_key = stream_key
        self.attach = attach
        self.cache_ttl = cache_ttl
        self.rerun = rerun
        self.on_end = on_end
        self.rules = rules
        self.collects = rules is not None and rules.collect is not None
        self.is_certain = True

    def for_glob(self, glob: str) -> "Mark":
        """Return the mark of the paths that `glob` matches."""
        if not _WILDCARDS.search(glob):
            return self
        mark = copy.copy(self)
        mark.is_certain = False
        return mark

    def __call__(self, endpoint: Endpoint) -> Endpoint:
        """Attach the mark to `endpoint`, and return the endpoint."""
        setattr(endpoint, _ATTRIBUTE, self)
        return endpoint


@overload
def streaming(endpoint: Endpoint, /) -> Endpoint: ...
@overload
def streaming(
    *,
    name: str | None = None,
    family: str | None = None,
    stream_name: StreamName | None = None,
    ids: Literal["app"] | None = None,
    stream_key: StreamKey | None = None,
    attach: Attach = "never",
    cache_ttl: float | None = None,
    rerun: Rerun = "always",
    on_end: OnEnd | None = None,
    transform: TransformOption | None = None,
    order: Sequence[str] | None = None,
    collect: Collect | None = None,
    **overrides: Unpack[EndpointArguments],
) -> Mark: ...
def streaming(
    endpoint: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    family: str | None = None,
    stream_name: StreamName | None = None,
    ids: str | None = None,
    stream_key: StreamKey | None = None,
    attach: Attach = "never",
    cache_ttl: float | None = None,
    rerun: Rerun = "always",
    on_end: OnEnd | None = None,
    transform: TransformOption | None = None,
    order: Sequence[str] | None = None,
    collect: Collect | None = None,
    **overrides: Any,
) -> Any:
    """Mark an endpoint as one that streams, with its own options.

    Write it below the framework's decorator (`@app.get(...)`), on a function, a class-based
    endpoint or one of its methods; or pass it to the middleware for a path:
    `marks={"/chat/*": streaming(stream_max_seconds=600)}`.

    If the client of a stream that is kept disconnects, the endpoint continues for `linger_seconds`,
    and what it holds, such as a database session, stays held. Streams of an `EventSource` are kept,
    and those that have a name; `keep=False` keeps none.

    Args:
        endpoint: the endpoint, if there are no options.
        name: the name in metrics and logs if the endpoint has no route template.
        family: the kind of all its clients: `eventsource`, `plain` or `openai`.
        stream_name: the name of each stream, as for `resume_endpoint`, unless the handler calls
            `current_stream().name`.
        ids: `"app"` if the app gives its events its own ids, but does not keep them: the middleware
            keeps them, and streams are resumed by those ids.
        stream_key: with `ids`, a function that returns the key of the stream that a scope requests.
        attach: the streams that a request of the same identity follows from their first event,
            instead of running the app. `"running"`: a stream that is open, or about to open;
            `"kept"`: also one that has finished. Streams that were cut, capped or ended by an
            error are not followed. Requests belong together by their `Idempotency-Key`, else by
            `stream_name`, else by their method, path, query, `Accept` and body.
        cache_ttl: with `attach="kept"`, how long a finished stream is kept, in seconds, in place of
            `SSE_REPLAY_TTL`.
        rerun: `"never"` if the app does not run for a client whose stream cannot be resumed: it
            gets `reset` and the end.
        on_end: a function, async or not, that is called once with an `EndInfo` and the list of
            events when a stream has ended, regardless of how, also after its client has left. It
            delays no client. One that is not async runs in a thread.
        transform: a function, async or not, that returns the `Event` that is sent in place of one
            of the app, several, or `None`; or a class, which is instantiated for each stream.
        order: the names of events in the order in which they are to be sent.
        collect: a function, async or not, of the list of events, whose result is sent as JSON to
            clients that do not accept event streams.
        **overrides: fields of `Options`; `enabled=False` leaves the endpoint alone.

    Raises:
        ConfigurationError: a value is not allowed.
        TypeError: there is no such option, or it is one of the whole app.
    """
    if endpoint is not None and not callable(endpoint):
        allowed = 'an endpoint; for paths, SSEMiddleware(app, mark="/chat/*")'
        raise ConfigurationError("the endpoint of streaming", endpoint, allowed)
    if ids not in (None, "app"):
        raise ConfigurationError("ids", ids, "app")
    if (ids is None) != (stream_key is None):
        raise TypeError('ids="app" and stream_key belong together')
    mark = Mark(
        name=name,
        family=family,
        overrides=overrides,
        stream_name=stream_name,
        stream_key=stream_key,
        attach=attach,
        cache_ttl=cache_ttl,
        rerun=rerun,
        on_end=on_end,
        rules=EventRules.validated(transform, order, collect),
    )
    return mark if endpoint is None else mark(endpoint)


def get_mark(endpoint: object, method: str = "") -> Mark | None:
    """Return the mark of `endpoint`, or of its method for the HTTP `method`."""
    if type(endpoint) is FunctionType and not endpoint.__dict__:
        return None  # most endpoints
    while endpoint is not None:
        for place in (getattr(endpoint, method.lower(), None) if method else None, endpoint):
            mark = getattr(place, _ATTRIBUTE, None)
            if isinstance(mark, Mark):
                return mark
        endpoint = getattr(endpoint, "func", None)  # functools.partial
    return None


def _is_name(name: object) -> bool:
    """Return whether streams can have a name: a function, or text with parameters in braces."""
    if not isinstance(name, str):
        return callable(name)
    try:
        parameters = [parameter for _, parameter, *_ in Formatter().parse(name)]
    except ValueError:  # a brace is not closed
        return False
    return name != "" and "" not in parameters


def name_in(name: StreamName, scope: Mapping[str, Any]) -> str:
    """Return the name of a stream for the path parameters of a scope."""
    if not isinstance(name, str):
        return name(scope)
    parameters = scope.get("path_params", {})
    try:
        return name.format_map(parameters)
    except KeyError:
        raise ConfigurationError("the name of a stream", name, fields_allowed(parameters)) from None


def fields_allowed(parameters: Iterable[str]) -> str:
    """Return what the name of a stream may have in braces, on a route with these parameters."""
    names = ", ".join(f"{{{parameter}}}" for parameter in parameters)
    return f"text with the path parameters of the route in braces: {names or 'it has none'}"


def route_name(scope: Mapping[str, Any], mark: Mark | None = None) -> str:
    """Return the template of the route that the app has matched, else the mark's name.

    FastAPI stores its route in the scope, and so do recent versions of Starlette; older ones store
    the endpoint and the router. Litestar stores the template. The raw path is never a name.
    """
    route = scope.get("route")
    if route is None and scope.get("endpoint") is not None:
        route = _route_to(scope["endpoint"], getattr(scope.get("router"), "routes", ()))
    path = getattr(route, "path", None)
    if not isinstance(path, str):
        path = scope.get("path_template")
    if isinstance(path, str):
        return path
    return (mark.name if mark else None) or UNMATCHED


def _route_to(endpoint: object, routes: Iterable[Any]) -> object:
    for route in routes:
        if getattr(route, "endpoint", None) is endpoint:
            return route
        inner = _route_to(endpoint, getattr(route, "routes", None) or ())
        if inner is not None:
            return inner
    return None


PathMarks = Sequence[tuple[re.Pattern[str], Mark]]
"""Patterns of paths with their marks; the first that matches applies."""


def compile_marks(marks: Mapping[str, Mark]) -> PathMarks:
    """Return marks with their path globs as patterns.

    Raises:
        ConfigurationError: a path glob begins with neither `/` nor `*`.
        TypeError: a value is no mark.
    """
    for glob, mark in marks.items():
        if not is_glob(glob):
            raise ConfigurationError("a path of marks", glob, GLOBS_ALLOWED)
        if not isinstance(mark, Mark):
            raise TypeError(f"the mark of {glob!a} is {mark!r}, allowed is streaming(...)")
    return [(_pattern(glob), mark.for_glob(glob)) for glob, mark in marks.items()]


def bare_marks(globs: Iterable[str]) -> PathMarks:
    """Return marks without options for path globs."""
    mark = streaming()
    mark.is_certain = False
    return [(_pattern(glob), mark) for glob in globs]


class PathFilter:
    """Determine which paths the middleware leaves alone.

    Args:
        include: globs of the paths that it handles, none for all.
        exclude: globs of the paths that it leaves alone.

    Attributes:
        is_set: whether there is any glob.
    """

    def __init__(self, include: Iterable[str], exclude: Iterable[str]) -> None:
        self._include = [_pattern(glob) for glob in include]
        self._exclude = [_pattern(glob) for glob in exclude]
        self.is_set = bool(self._include or self._exclude)

    def leaves_out(self, path: str) -> bool:
        """Return whether the middleware leaves a path of the app alone."""
        if self._include and not any(glob.match(path) for glob in self._include):
            return True
        return any(glob.match(path) for glob in self._exclude)


def _pattern(glob: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob))
