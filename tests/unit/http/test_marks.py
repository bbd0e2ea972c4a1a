"""Marks: options of one endpoint, for each framework and its routes."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Host, Mount, Route
from starlette.types import ASGIApp

from sse_middleware import ConfigurationError, SSEMiddleware, plugin, streaming
from tests.support.asgi import EVENTSOURCE, Exchange, handle, stream_of

pytestmark = pytest.mark.anyio

SEVEN = {b"x-stream-max-seconds": b"7"}


async def events() -> AsyncIterator[bytes]:
    yield b"data: x\n\n"


def respond(*_: object) -> Response:
    return StreamingResponse(events(), media_type="text/event-stream")


@streaming(stream_max_seconds=7)
async def marked(request: Request) -> Response:
    return respond()


async def unmarked(request: Request) -> Response:
    return respond()


@streaming
async def bare(request: Request) -> Response:
    return respond()


async def partly(extra: str, request: Request) -> Response:
    return respond()


streaming(stream_max_seconds=7)(partly)


@streaming(stream_max_seconds=7)
class MarkedClass(HTTPEndpoint):
    async def get(self, _request: Request) -> Response:
        return respond()


class MarkedMethod(HTTPEndpoint):
    @streaming(stream_max_seconds=7)
    async def get(self, _request: Request) -> Response:
        return respond()

    async def post(self, _request: Request) -> Response:
        return respond()


def starlette() -> Starlette:
    inner = Starlette(routes=[Route("/marked", marked), Route("/unmarked", unmarked)])
    return Starlette(
        routes=[
            Route("/marked", marked),
            Route("/unmarked", unmarked),
            Route("/bare", bare),
            Route("/partial", partial(partly, "x")),
            Route("/class", MarkedClass),
            Route("/method", MarkedMethod),
            Mount("/mount/{tenant}", routes=[Route("/marked", marked)]),
            Mount("/app", inner),
            Host("inner.example", inner),
        ]
    )


async def get(app: ASGIApp, path: str, **scope: Any) -> Exchange:
    headers = scope.pop("headers", EVENTSOURCE)
    return await handle(app, path=path, headers=headers, **scope)


def cap(exchange: Exchange) -> bytes | None:
    """Return the announced cap, `None` for an unmarked stream."""
    return exchange.headers.get(b"x-stream-max-seconds")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/marked", b"7"),
        ("/unmarked", None),
        ("/bare", b"60"),
        ("/partial", b"7"),
        ("/class", b"7"),
        ("/method", b"7"),
        ("/mount/acme/marked", b"7"),
        ("/app/marked", b"7"),
        ("/app/unmarked", None),
    ],
)
async def test_a_mark_is_found_in_each_attribute_in_which_starlette_keeps_the_endpoint(
    path: str, expected: bytes | None
) -> None:
    added = starlette()
    added.add_middleware(SSEMiddleware)
    for app in (added, SSEMiddleware(starlette())):
        assert cap(await get(app, path)) == expected


async def test_a_mark_is_found_inside_a_host_route() -> None:
    app = SSEMiddleware(starlette())
    headers = [*EVENTSOURCE, (b"host", b"inner.example")]
    assert cap(await get(app, "/app/marked", headers=headers)) == b"7"


async def test_a_mark_on_a_method_holds_for_that_method_only() -> None:
    headers = [(b"accept", b"text/event-stream;events=named")]
    app = SSEMiddleware(starlette())
    assert cap(await get(app, "/method", method="POST", headers=headers)) is None


async def test_a_mark_alone_sets_no_cap_for_a_plain_client() -> None:
    app = SSEMiddleware(starlette())
    assert cap(await get(app, "/bare", headers=[])) == b"off"
    assert cap(await get(app, "/bare")) == b"60"
    assert cap(await get(app, "/marked", headers=[])) == b"7"


async def test_a_mark_is_found_in_fastapi_on_routers_and_with_dependencies() -> None:
    fastapi = pytest.importorskip("fastapi", reason="the minimal environment has no FastAPI")
    inner, outer = fastapi.APIRouter(prefix="/inner"), fastapi.APIRouter(prefix="/outer")
    app = fastapi.FastAPI()
    app.add_middleware(SSEMiddleware)

    async def dependency() -> str:
        return "value"

    needs = fastapi.Depends(dependency)

    @streaming(stream_max_seconds=7)
    async def endpoint(value: Any = needs) -> Any:
        return respond()

    endpoint.__annotations__ = {}
    paths: list[tuple[Callable[..., Any], str]] = [
        (app.get, "/own"),
        (outer.get, "/x"),
        (inner.get, "/y"),
    ]
    for add, path in paths:
        add(path, dependencies=[needs], response_model=None)(endpoint)
    outer.include_router(inner)
    app.include_router(outer, prefix="/api")
    for path in ("/own", "/api/outer/x", "/api/outer/inner/y"):
        assert cap(await get(app, path)) == b"7"


async def test_a_mark_can_leave_an_endpoint_alone() -> None:
    @streaming(enabled=False)
    async def left_alone(request: Request) -> Response:
        return respond()

    exchange = await get(SSEMiddleware(Starlette(routes=[Route("/", left_alone)])), "/")
    assert exchange.body == b"data: x\n\n"
    assert b"x-stream-id" not in exchange.headers


async def test_only_marked_leaves_all_other_endpoints_alone() -> None:
    app = SSEMiddleware(starlette(), only_marked=True)
    assert (await get(app, "/marked")).names == ["start", "message", "complete"]
    assert (await get(app, "/unmarked")).names == ["message"]


async def test_marks_for_paths_apply_after_the_mark_of_the_endpoint() -> None:
    app = SSEMiddleware(
        starlette(),
        marks={
            "/app/unmarked": streaming(stream_max_seconds=8),
            "/*": streaming(stream_max_seconds=9),
        },
    )
    for path, expected in (("/app/unmarked", b"8"), ("/unmarked", b"9"), ("/marked", b"7")):
        assert cap(await get(app, path)) == expected


def marking(app: ASGIApp, **options: Any) -> SSEMiddleware:
    """Return `app` in a middleware that leaves all streams alone but those that are marked."""
    return SSEMiddleware(app, only_marked=True, **options)


async def is_marked(app: ASGIApp, path: str, **scope: Any) -> bool:
    return (await get(app, path, **scope)).names != ["message"]


@pytest.mark.parametrize("globs", ["/chat/*,/feed", ["/chat/*", "/feed"], ("/chat/*", "/feed")])
async def test_the_argument_marks_paths(globs: Any) -> None:
    app = marking(stream_of(b"data: x\n\n"), mark=globs)
    for path in ("/chat/1", "/chat/1/more", "/feed"):
        assert await is_marked(app, path)
    for path in ("/chat", "/feeds", "/", "/a/chat/1"):
        assert not await is_marked(app, path)


async def test_a_star_marks_everything() -> None:
    app = marking(stream_of(b"data: x\n\n"), mark="*")
    assert await is_marked(app, "/")
    assert await is_marked(app, "/any/path")


async def test_the_variable_marks_paths_unless_the_argument_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSE_MARK", " /chat/* , /feed")
    by_variable = marking(stream_of(b"data: x\n\n"))
    by_argument = marking(stream_of(b"data: x\n\n"), mark="/other")
    for path, variable, argument in (("/feed", True, False), ("/other", False, True)):
        assert await is_marked(by_variable, path) is variable
        assert await is_marked(by_argument, path) is argument


@pytest.mark.parametrize(
    ("path", "root"), [("/api/chat/1", "/api"), ("/chat/1", ""), ("/chat/1", "/api")]
)
async def test_globs_match_below_the_root_path(path: str, root: str) -> None:
    apps: list[SSEMiddleware] = [
        marking(stream_of(b"data: x\n\n"), mark="/chat/*"),
        marking(stream_of(b"data: x\n\n"), marks={"/chat/*": streaming()}),
        SSEMiddleware(stream_of(b"data: x\n\n"), mark="*", include=["/chat/*"]),
    ]
    for app in apps:
        assert await is_marked(app, path, root_path=root)
        assert not await is_marked(app, "/other" + path, root_path=root)
    excluded = SSEMiddleware(stream_of(b"data: x\n\n"), mark="*", exclude=["/chat/*"])
    assert not await is_marked(excluded, path, root_path=root)


async def test_globs_match_the_path_of_the_request_whatever_the_mounts_of_the_app_do() -> None:
    for glob in ("/app/unmarked", "/app/*"):
        assert await is_marked(marking(starlette(), mark=glob), "/app/unmarked")
        app = marking(starlette(), mark=glob)
        assert await is_marked(app, "/api/app/unmarked", root_path="/api")
    assert not await is_marked(marking(starlette(), mark="/unmarked"), "/app/unmarked")


async def test_globs_match_below_the_mount_of_an_app_with_its_own_middleware() -> None:
    inner = marking(starlette(), mark="/unmarked")
    outer = Starlette(routes=[Mount("/outer", inner)])
    assert await is_marked(outer, "/outer/unmarked")


async def test_the_mark_of_the_endpoint_has_precedence_over_those_of_paths() -> None:
    options: dict[str, Any] = {
        "marks": {"/marked": streaming(stream_max_seconds=8), "/app/*": streaming(retry_ms=1)},
        "mark": "*",
        "stream_max_seconds": 9,
    }
    app = SSEMiddleware(starlette(), **options)
    for path, expected in (("/marked", b"7"), ("/app/unmarked", b"9"), ("/unmarked", b"9")):
        assert cap(await get(app, path)) == expected
    assert (await get(app, "/app/unmarked")).retry == 1


async def test_an_endpoint_or_a_path_can_opt_out_although_a_glob_matches() -> None:
    @streaming(enabled=False)
    async def left_alone(request: Request) -> Response:
        return respond()

    routes = [Route("/own", left_alone), Route("/path", unmarked), Route("/other", unmarked)]
    marks = {"/path": streaming(enabled=False)}
    app = SSEMiddleware(Starlette(routes=routes), mark="*", marks=marks)
    for path, expected in (("/own", False), ("/path", False), ("/other", True)):
        assert await is_marked(app, path) is expected


@pytest.mark.parametrize("glob", ["chat/*", "", "?", "[/]x", " /chat"])
def test_a_glob_that_cannot_match_is_rejected(glob: str) -> None:
    with pytest.raises(ConfigurationError, match=r"marks is .*, allowed is path globs"):
        SSEMiddleware(stream_of(), marks={glob: streaming()})


@pytest.mark.parametrize("family", ["eventsource", "plain", "openai"])
async def test_a_mark_sets_the_client_kind_of_all_clients(family: str) -> None:
    app = SSEMiddleware(stream_of(b"data: x\n\n"), marks={"*": streaming(family=family)})
    for headers in (EVENTSOURCE, []):
        names = (await get(app, "/", headers=headers)).names
        named = family == "eventsource"
        assert names == (["start", "message", "complete"] if named else ["message"])


def test_a_mark_rejects_what_is_not_allowed() -> None:
    with pytest.raises(ConfigurationError, match="heartbeat_interval is 0, allowed is seconds"):
        streaming(heartbeat_interval=0)
    with pytest.raises(ConfigurationError, match="family is 'browser', allowed is eventsource"):
        streaming(family="browser")
    with pytest.raises(TypeError, match="not an option of one endpoint: metrics_path"):
        streaming(metrics_path="/m")  # type: ignore[call-overload]  # the mistake that is tested
    with pytest.raises(TypeError, match="no such option: speed"):
        streaming(speed=1)  # type: ignore[call-overload]  # the mistake that is tested


# plugin.install


async def test_install_adds_the_middleware_once_outermost_except_for_cors() -> None:
    app = starlette()
    app.add_middleware(Middleware)  # type: ignore[arg-type]  # a place in the stack, never built
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    plugin.install(app, stream_max_seconds=9, mark="*")
    plugin.install(app)
    stack: list[Any] = app.user_middleware
    assert [entry.cls for entry in stack] == [CORSMiddleware, SSEMiddleware, Middleware]
    app.user_middleware.pop()
    exchange = await get(app, "/unmarked", headers=[*EVENTSOURCE, (b"origin", b"http://a")])
    assert cap(exchange) == b"9"
    assert exchange.headers[b"access-control-allow-origin"] == b"*"


async def test_install_is_rejected_once_the_app_has_started() -> None:
    app = starlette()
    await get(app, "/unmarked")
    with pytest.raises(RuntimeError, match="has started"):
        plugin.install(app)


def test_install_raises_at_once_for_a_wrong_option() -> None:
    with pytest.raises(ConfigurationError):
        plugin.install(starlette(), retry_ms=-1)
