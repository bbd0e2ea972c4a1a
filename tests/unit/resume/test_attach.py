"""Requests that follow the stream of an equal request, instead of running the app."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Scope

from sse_middleware import (
    ConfigurationError,
    SSEMiddleware,
    StoreError,
    current_stream,
    resume_endpoint,
    streaming,
)
from sse_middleware.http.routes import Attach, Mark
from sse_middleware.stores.memory import MemoryStore
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running
from tests.support.resuming import REFUSING, TTL, memory, now

pytestmark = pytest.mark.anyio

ANN = (b"x-user", b"ann")
BOB = (b"x-user", b"bob")
JSON = (b"content-type", b"application/json")
STREAM = (b"accept", b"text/event-stream")
ANSWER = b"".join(b"data: %d\n\n" % number for number in range(1, 6))
UNKNOWN = "A" * 22 + "-3"


def user(scope: Scope) -> str | None:
    """Return the user of a request."""
    return dict(scope["headers"]).get(b"x-user", b"").decode() or None


class Model:
    """A handler that thinks for a second, and then counts to five, a number a second.

    Args:
        fails: how each run ends: `""`, `raises`, `error` (an event of the app) or `json`.

    Attributes:
        runs: the bodies of its requests.
    """

    def __init__(self, fails: str = "", *, thinks: float = 1.0) -> None:
        self.runs: list[bytes] = []
        self._fails = fails
        self._thinks = thinks

    async def __call__(self, request: Request) -> Response:
        self.runs.append(await request.body())
        await asyncio.sleep(self._thinks)
        if self._fails == "json":
            return JSONResponse({"detail": "busy"}, 503)
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        for number in range(1, 6):
            yield b"data: %d\n\n" % number
            await asyncio.sleep(1)
        if self._fails == "raises":
            raise LookupError("the model is gone")
        if self._fails == "error":
            yield b"event: error\ndata: {}\n\n"


def serving(model: Model, mark: Mark, **options: Any) -> SSEMiddleware:
    """Return an app with one marked endpoint, and one that resumes it by name."""

    async def chat(request: Request) -> Response:
        return await model(request)

    app = Starlette(
        routes=[
            Route("/chat/{chat}", mark(chat), methods=["GET", "POST"]),
            Route("/live/{chat}", resume_endpoint("chat:{chat}")),
        ]
    )
    return SSEMiddleware(app, **{"identify": user, "store": memory(), **options})


def post(*headers: tuple[bytes, bytes], path: str = "/chat/7", body: bytes = b"hi") -> Exchange:
    return Exchange(http_scope(headers=[*headers], path=path, method="POST"), body=body)


async def send_all(app: SSEMiddleware, *exchanges: Exchange) -> None:
    await asyncio.gather(*[app(one.scope, one.receive, one.send) for one in exchanges])


def cache_of(exchange: Exchange) -> bytes | None:
    return exchange.headers.get(b"x-stream-cache")


@pytest.mark.parametrize("attach", ["running", "kept"])
async def test_equal_requests_run_the_app_once(attach: Any) -> None:
    model = Model()
    app = serving(model, streaming(attach=attach))
    exchanges = [post(ANN) for _ in range(50)]
    await send_all(app, *exchanges)
    assert model.runs == [b"hi"]
    assert {one.body for one in exchanges} == {ANSWER}
    assert [cache_of(one) for one in exchanges] == [None, *[b"coalesced"] * 49]
    assert len({one.headers[b"x-stream-id"] for one in exchanges}) == 1
    assert app._context.store._claims == {}  # type: ignore[attr-defined]


async def test_a_request_that_comes_later_gets_the_stream_from_its_first_event() -> None:
    model = Model()
    app = serving(model, streaming(attach="running"))
    first, second = post(ANN), post(ANN)
    async with running(app, first):
        await first.until_count(3, "message")
        async with running(app, second):
            await second.until_end()
        await first.until_end()
    assert (first.body, second.body, len(model.runs)) == (ANSWER, ANSWER, 1)


@pytest.mark.parametrize(
    "other",
    [
        post(BOB),
        post(),
        post(ANN, body=b"ho"),
        post(ANN, path="/chat/8"),
        Exchange(http_scope(headers=[ANN], path="/chat/7")),
        post(ANN, STREAM),
        Exchange(
            http_scope(headers=[ANN], path="/chat/7", method="POST", query_string=b"a=1"),
            body=b"hi",
        ),
    ],
    ids=["identity", "no identity", "body", "path", "method", "accept", "query"],
)
async def test_a_request_that_differs_runs_the_app(other: Exchange) -> None:
    model = Model()
    await send_all(serving(model, streaming(attach="running")), post(ANN), other)
    assert len(model.runs) == 2
    assert cache_of(other) is None


async def test_without_attach_each_request_runs_the_app() -> None:
    model = Model()
    await send_all(serving(model, streaming()), post(ANN), post(ANN))
    assert len(model.runs) == 2


async def test_a_finished_stream_is_followed_only_if_it_is_kept() -> None:
    modes: list[tuple[Attach, int]] = [("running", 2), ("kept", 1)]
    for attach, runs in modes:
        model = Model()
        app = serving(model, streaming(attach=attach))
        first, second = post(ANN), post(ANN)
        await send_all(app, first)
        began = now()
        await send_all(app, second)
        assert (first.body, second.body) == (ANSWER, ANSWER)
        assert len(model.runs) == runs
        assert cache_of(second) == (b"hit" if attach == "kept" else None)
        assert (now() - began < 0.1) is (attach == "kept")


@pytest.mark.parametrize("cache_ttl", [None, 5.0, 600.0])
async def test_a_finished_stream_is_kept_for_its_time(cache_ttl: float | None) -> None:
    model = Model()
    app = serving(model, streaming(attach="kept", cache_ttl=cache_ttl))
    seconds = cache_ttl or TTL
    await send_all(app, post(ANN))
    await asyncio.sleep(seconds - 1)
    await send_all(app, post(ANN))
    assert len(model.runs) == 1
    await asyncio.sleep(2)
    assert len(app._context.store) == 0  # type: ignore[arg-type]
    await send_all(app, post(ANN))
    assert len(model.runs) == 2


@pytest.mark.parametrize("fails", ["raises", "error"])
async def test_a_failed_stream_is_not_followed_after_its_end(fails: str) -> None:
    model = Model(fails)
    app = serving(model, streaming(attach="kept"))
    for count in (1, 2):
        exchange = post(ANN)
        try:
            await send_all(app, exchange)
        except (LookupError, ExceptionGroup):  # older Starlettes raise a group
            assert fails == "raises"
        assert cache_of(exchange) is None
        assert len(model.runs) == count


@pytest.mark.parametrize("how", ["cap", "stop", "evict"])
async def test_a_stream_that_was_cut_is_not_followed_after_its_end(how: str) -> None:
    model = Model()
    seconds = 3 if how == "cap" else None
    mark = streaming(attach="kept", stream_name="chat:{chat}", stream_max_seconds=seconds)
    app = serving(model, mark)
    first = post(ANN)
    async with running(app, first):
        await first.until_count(2, "message")
        if how == "stop":
            await send_all(
                app, Exchange(http_scope(headers=[ANN], path="/live/7", method="DELETE"))
            )
        elif how == "evict":
            next(iter(app._context.store._logs.values()))._producer._owner.control.evict()  # type: ignore[attr-defined]
        await asyncio.sleep(9)
    assert first.body != ANSWER
    second = post(ANN)
    await send_all(app, second)
    assert len(model.runs) == 2
    assert cache_of(second) is None


async def test_if_the_response_is_no_stream_all_requests_run_the_app() -> None:
    model = Model("json")
    app = serving(model, streaming(attach="kept"))
    exchanges, began = [post(ANN) for _ in range(5)], now()
    await send_all(app, *exchanges)
    assert len(model.runs) == 5
    assert {one.status for one in exchanges} == {503}
    assert now() - began < 3  # the four wait for the first one, and then run at the same time
    assert app._context.store._claims == {}  # type: ignore[attr-defined]


async def test_a_request_that_is_cancelled_while_its_app_thinks_lets_the_others_run() -> None:
    model = Model()
    app = serving(model, streaming(attach="running"))
    first, second = post(ANN), post(ANN)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(send_all(app, first))
        await asyncio.sleep(0.5)
        group.create_task(send_all(app, second))
        await asyncio.sleep(0.1)
        task.cancel()
    assert (second.body, len(model.runs)) == (ANSWER, 2)
    assert app._context.store._claims == {}  # type: ignore[attr-defined]


async def test_an_event_source_and_a_plain_client_follow_one_named_stream() -> None:
    model = Model()
    app = serving(model, streaming(attach="running", stream_name="chat:{chat}"))
    first = post(ANN)
    native = Exchange(http_scope(headers=[*EVENTSOURCE, ANN], path="/chat/7"))
    async with running(app, first):
        await first.until_count(2, "message")
        await send_all(app, native)
        await first.until_end()
    assert len(model.runs) == 1
    assert [event.event for event in native.events] == ["start", *["message"] * 5, "complete"]
    assert all(event.id for event in native.events)
    assert first.body == ANSWER


async def test_a_stream_of_another_route_is_followed_by_its_name() -> None:
    model = Model()

    async def start(request: Request) -> Response:
        current_stream().name(f"chat:{request.path_params['chat']}")
        return await model(request)

    async def follow(_: Request) -> Response:
        raise AssertionError("the app is not to run")

    mark = streaming(attach="running", stream_name="chat:{chat}")
    app = SSEMiddleware(
        Starlette(
            routes=[
                Route("/start/{chat}", streaming(start), methods=["POST"]),
                Mount("/api", routes=[Route("/chat/{chat}", mark(follow))]),
            ]
        ),
        identify=user,
        store=memory(),
    )
    first = post(ANN, path="/start/3")
    second = Exchange(http_scope(headers=[ANN], path="/api/chat/3"))
    async with running(app, first):
        await first.until_count(1, "message")
        await send_all(app, second)
    assert second.body == ANSWER


async def test_json_is_no_stream_for_a_client_that_does_not_read_streams() -> None:
    """The app of seed 003 sends JSON unless `Accept` names event streams."""
    model = Model()

    async def search(request: Request) -> Response:
        if "text/event-stream" in request.headers.get("accept", ""):
            return await model(request)
        return JSONResponse({"answer": "all"})

    mark = streaming(attach="kept", stream_name="search")
    routes = [Route("/search", mark(search), methods=["POST"])]
    app = SSEMiddleware(Starlette(routes=routes), identify=user, store=memory())
    first = post(ANN, STREAM, path="/search")
    async with running(app, first):
        await first.until_count(1, "message")
        for accept in (b"application/json", b"*/*", None):
            headers = [] if accept is None else [(b"accept", accept)]
            other = post(ANN, *headers, path="/search")
            await send_all(app, other)
            assert other.body == b'{"answer":"all"}'
        again = post(ANN, STREAM, path="/search")
        await send_all(app, again)
        assert (cache_of(again), again.body) == (b"coalesced", ANSWER)


KEY = (b"idempotency-key", b'"8e03978e-40d5-43dd-bc93-6894a57f9324"')


async def test_an_idempotency_key_names_the_stream_of_a_request() -> None:
    model = Model()
    app = serving(model, streaming(attach="kept", stream_name="chat:{chat}"))
    one, two, other = post(ANN, KEY), post(ANN, KEY), post(ANN, (KEY[0], b"k"))
    await send_all(app, one, two, other)
    assert len(model.runs) == 2
    assert [cache_of(exchange) for exchange in (one, two, other)] == [None, b"coalesced", None]
    # The name of the mark leads to the stream too.
    live = Exchange(http_scope(headers=[ANN], path="/live/7"))
    third = post(ANN, (KEY[0], b"l"))
    async with running(app, third):
        await third.until_count(1, "message")
        await send_all(app, live)
    assert live.body == ANSWER


@pytest.mark.parametrize("attach", ["running", "kept"])
@pytest.mark.parametrize("finished", [True, False])
async def test_an_idempotency_key_with_another_body_is_a_conflict(
    attach: Any, *, finished: bool
) -> None:
    model = Model()
    app = serving(model, streaming(attach=attach))
    first, other = post(ANN, KEY), post(ANN, KEY, body=b"another")
    async with running(app, first):
        await (first.until_end() if finished else first.until_count(1, "message"))
        await send_all(app, other)
        assert other.status == 409
        assert other.headers[b"content-type"] == b"application/json"
        assert b"idempotency_key_reused" in other.body
        assert b"retry-after" not in other.headers
        stranger = post(BOB, KEY, body=b"another")
        await send_all(app, stranger)
        assert (stranger.status, stranger.body) == (200, ANSWER)
        await first.until_end()
    assert len(model.runs) == 2


async def test_without_attach_an_idempotency_key_is_the_name_of_the_stream() -> None:
    def key(scope: Scope) -> str:
        return str(dict(scope["headers"])[b"idempotency-key"], "latin-1")

    async def chat(request: Request) -> Response:
        return await Model()(request)

    routes = [
        Route("/chat", streaming(chat), methods=["POST"]),
        Route("/live", resume_endpoint(key)),
    ]
    app = SSEMiddleware(Starlette(routes=routes), identify=user, store=memory())
    first = post(ANN, KEY, path="/chat")
    live = Exchange(http_scope(headers=[ANN, KEY], path="/live"))
    async with running(app, first):
        await first.until_count(1, "message")
        await send_all(app, live)
    assert live.body == ANSWER


@pytest.mark.parametrize("key", [b"", b" ", b"x" * 9000, bytes(range(1, 256)), b"\xff" * 300])
async def test_any_bytes_may_be_an_idempotency_key(key: bytes) -> None:
    model = Model()
    app = serving(model, streaming(attach="running"))
    exchanges = [post(ANN, (KEY[0], key)) for _ in range(3)]
    await send_all(app, *exchanges)
    assert len(model.runs) == 1
    assert {one.body for one in exchanges} == {ANSWER}


async def test_a_body_that_is_too_long_to_compare_runs_the_app() -> None:
    model = Model()
    app = serving(model, streaming(attach="running"))
    long = bytes(2 << 20)
    await send_all(app, post(ANN, body=long), post(ANN, body=long))
    assert model.runs == [long, long]


class BrokenStore(MemoryStore):
    """A store that is out of reach from some call on."""

    def __init__(self, broken: str) -> None:
        super().__init__(clock=now)
        self._broken = broken

    async def find_named(self, name: str) -> Any:
        self._check("find_named")
        return await super().find_named(name)

    async def claim(self, name: str, stream_id: str) -> str:
        self._check("claim")
        return await super().claim(name, stream_id)

    async def claimant(self, name: str) -> str | None:
        self._check("claimant")
        return await super().claimant(name)

    def _check(self, call: str) -> None:
        if call == self._broken:
            raise StoreError(call)


@pytest.mark.parametrize("broken", ["find_named", "claim", "claimant"])
async def test_if_the_store_is_out_of_reach_each_request_runs_the_app(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    app = serving(model, streaming(attach="kept"), store=BrokenStore(broken))
    exchanges = [post(ANN), post(ANN)]
    await send_all(app, *exchanges)
    assert len(model.runs) == 2
    assert {one.body for one in exchanges} == {ANSWER}
    assert "the store is unavailable" in caplog.text


async def test_a_client_without_an_identity_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = serving(Model(), streaming(attach="running"))
    await send_all(app, post(), post())
    warnings = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "/chat/{chat} attaches no request" in warnings[0]
    assert "SSE_IDENTITY_COOKIES" in warnings[0]


async def test_a_route_that_is_added_later_attaches_requests_from_its_second_one_on() -> None:
    model = Model()

    async def chat(request: Request) -> Response:
        return await model(request)

    app = Starlette(exception_handlers=REFUSING)
    wrapped = SSEMiddleware(app, identify=user, store=memory())
    await send_all(wrapped, post(ANN))
    app.add_route("/late", streaming(attach="running")(chat), methods=["POST"])
    await send_all(wrapped, post(ANN, path="/late"))
    await send_all(wrapped, post(ANN, path="/late"), post(ANN, path="/late"))
    assert len(model.runs) == 2


async def test_streams_of_marked_paths_are_attached_without_starlette() -> None:
    model = Model()

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        await (await model(Request(scope, receive)))(scope, receive, send)

    wrapped = SSEMiddleware(
        app, marks={"/chat/*": streaming(attach="running")}, identify=user, store=memory()
    )
    exchanges = [post(ANN), post(ANN), post(ANN, path="/other"), post(ANN, path="/other")]
    await send_all(wrapped, *exchanges)
    assert len(model.runs) == 3


async def test_limits_do_not_count_requests_that_are_attached() -> None:
    model = Model()
    app = serving(model, streaming(attach="running"), max_streams=1)
    exchanges = [post(ANN) for _ in range(5)]
    await send_all(app, *exchanges)
    assert {one.status for one in exchanges} == {200}
    assert len(model.runs) == 1


async def test_a_request_that_is_rejected_lets_the_others_run() -> None:
    model = Model()
    app = serving(model, streaming(attach="running"), max_streams=1)
    other, rejected, third = post(BOB), post(ANN), post(ANN)
    async with running(app, other):
        await other.until_count(1, "message")
        await send_all(app, rejected)
        assert rejected.status == 503
        assert app._context.store._claims == {}  # type: ignore[attr-defined]
        await other.until_end()
    await send_all(app, third)
    assert third.body == ANSWER


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"attach": "always"}, "attach is 'always', allowed is never or running or kept"),
        ({"rerun": "no"}, "rerun is 'no', allowed is always or never"),
        ({"attach": "kept", "cache_ttl": 0}, "cache_ttl is 0, allowed is above 0"),
        ({"attach": "kept", "cache_ttl": 1e9}, "cache_ttl is 1000000000.0, allowed is above 0"),
    ],
)
def test_other_values_are_errors(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        streaming(**options)


def test_only_finished_streams_have_a_time() -> None:
    with pytest.raises(TypeError, match='cache_ttl needs attach="kept"'):
        streaming(attach="running", cache_ttl=5)


@pytest.mark.parametrize("rerun", ["always", "never"])
async def test_the_app_runs_again_unless_the_mark_forbids_it(rerun: Any) -> None:
    model = Model()
    app = serving(model, streaming(rerun=rerun))
    headers = [*EVENTSOURCE, (b"last-event-id", UNKNOWN.encode()), ANN]
    again = await handle(app, headers=headers, path="/chat/7")
    assert again.events[0].event == "reset"
    assert len(model.runs) == (rerun == "always")
    assert (len(again.events) == 1) is (rerun == "never")
    if rerun == "never":  # the id that the client has now ends its attempts
        headers[-2] = (b"last-event-id", str(again.events[0].id).encode())
        assert (await handle(app, headers=headers, path="/chat/7")).status == 204
        plain = await handle(
            app,
            headers=[(b"last-event-id", UNKNOWN.encode()), (b"accept", b"*/*")],
            path="/chat/7",
        )
        assert plain.status == 204
