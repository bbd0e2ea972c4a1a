"""Which requests want a stream: one rule, in a full process and in one that drains."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import SSEMiddleware, drain, streaming
from sse_middleware.protocol.event_ids import EventId
from tests.support.asgi import EVENTSOURCE, handle
from tests.support.limiting import ANY, PLAIN, answer, asked, limited
from tests.support.resuming import Counting

pytestmark = pytest.mark.anyio

OUR_ID = str(EventId("-" + "A" * 20 + "_", 3))
HELD = (b"last-event-id", OUR_ID.encode())
JSON = [(b"accept", b"application/json")]


class App:
    """An app that streams on one path, and has plain text on all others.

    Attributes:
        methods: the methods of the requests for text that it has handled.
    """

    def __init__(self) -> None:
        self.methods: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/held":
            await Counting(1000)(scope, receive, send)
        else:
            self.methods.append(scope["method"])
            await PlainTextResponse("text")(scope, receive, send)


@asynccontextmanager
async def full(app: App) -> AsyncIterator[ASGIApp]:
    """Open the only stream that the process may have."""
    wrapped = limited(app, max_streams=1, limit_action="reject", marks={"/marked": streaming()})
    async with asked(wrapped, PLAIN, path="/held") as first:
        await answer(first)
        yield wrapped


@asynccontextmanager
async def draining(app: App) -> AsyncIterator[ASGIApp]:
    """Drain a process without streams."""
    await drain()
    yield SSEMiddleware(app, marks={"/marked": streaming()}, drain_seconds=5)


States = Callable[[App], AbstractAsyncContextManager[ASGIApp]]
both = pytest.mark.parametrize("state", [full, draining], ids=lambda state: state.__name__)


@both
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "QUERY"])
async def test_a_request_for_only_an_event_stream_is_rejected_with_any_method(
    state: States, method: str
) -> None:
    app = App()
    async with state(app) as wrapped:
        exchange = await handle(wrapped, method=method, path="/text", headers=PLAIN)
    assert exchange.status == 503
    assert not app.methods


@both
@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_a_request_whose_method_gets_no_body_is_handled(state: States, method: str) -> None:
    app = App()
    async with state(app) as wrapped:
        await handle(wrapped, method=method, path="/marked", headers=PLAIN)
    assert app.methods == [method]


@both
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("headers", [ANY, JSON], ids=str)
async def test_an_event_id_of_ours_does_not_count_if_the_method_cannot_resume(
    state: States, method: str, headers: list[tuple[bytes, bytes]]
) -> None:
    app = App()
    async with state(app) as wrapped:
        exchange = await handle(wrapped, method=method, path="/text", headers=[*headers, HELD])
    assert exchange.status == 200
    assert app.methods == [method]


@both
@pytest.mark.parametrize(
    ("method", "headers"),
    [("GET", ANY), ("POST", ANY), ("PUT", [(b"accept", b"text/event-stream, */*")])],
)
async def test_a_request_for_a_stream_of_a_marked_endpoint_is_rejected(
    state: States, method: str, headers: list[tuple[bytes, bytes]]
) -> None:
    app = App()
    async with state(app) as wrapped:
        exchange = await handle(wrapped, method=method, path="/marked", headers=headers)
    assert exchange.status == 503
    assert not app.methods


@both
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("headers", [ANY, JSON], ids=str)
async def test_another_method_on_a_marked_path_is_handled_unless_it_accepts_streams_by_name(
    state: States, method: str, headers: list[tuple[bytes, bytes]]
) -> None:
    app = App()
    async with state(app) as wrapped:
        exchange = await handle(wrapped, method=method, path="/marked", headers=headers)
    assert exchange.status == 200
    assert app.methods == [method]


@both
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize("headers", [ANY, JSON, [], [*JSON, *PLAIN]], ids=str)
async def test_a_request_that_may_be_an_ordinary_one_is_handled(
    state: States, method: str, headers: list[tuple[bytes, bytes]]
) -> None:
    app = App()
    async with state(app) as wrapped:
        exchange = await handle(wrapped, method=method, path="/text", headers=headers)
    assert exchange.status == 200
    assert app.methods == [method]


@pytest.mark.parametrize(
    ("method", "headers", "query"),
    [("DELETE", [HELD], b""), ("POST", [], b"sse_cancel")],
)
async def test_a_request_to_end_a_stream_is_handled_while_the_process_drains(
    method: str, headers: list[tuple[bytes, bytes]], query: bytes
) -> None:
    app = App()
    async with draining(app) as wrapped:
        exchange = await handle(
            wrapped, method=method, path="/marked", headers=headers, query_string=query
        )
    assert (exchange.status, app.methods) == (204, [])


async def test_an_eventsource_reconnects_with_its_event_id_after_a_drain() -> None:
    app = App()
    async with draining(app) as wrapped:
        exchange = await handle(wrapped, path="/text", headers=[*EVENTSOURCE, HELD])
    assert exchange.status == 200
    assert exchange.names == ["start"]
    assert exchange.last_event_id == OUR_ID
    assert not app.methods
