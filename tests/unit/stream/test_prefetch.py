"""The disconnect of a client whose app does not receive, with layers around the middleware."""

import asyncio
import contextvars
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware, streaming
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, running, stream_start
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio

PLAIN: list[tuple[bytes, bytes]] = []
EACH_CLIENT = pytest.mark.parametrize("headers", [EVENTSOURCE, PLAIN], ids=["eventsource", "plain"])


class Deaf:
    """An app that never receives, such as Falcon's `resp.stream`."""

    def __init__(self, pause: float = 1.0) -> None:
        self.pause = pause
        self.ended_by: BaseException | None = None

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send(stream_start())
        try:
            while True:
                await send(body(b"data: x\n\n"))
                await asyncio.sleep(self.pause)
        except BaseException as exc:
            self.ended_by = exc
            raise


@pytest.mark.parametrize("pause", [1, 1000])
@pytest.mark.parametrize("heartbeats", [5, None])
async def test_a_marked_app_that_does_not_listen_is_stopped_after_its_plain_client_has_left(
    pause: float, heartbeats: float | None
) -> None:
    app = Deaf(pause)
    wrapped = marking(app, heartbeat_interval=heartbeats)
    async with running(wrapped, Exchange(http_scope(headers=PLAIN))) as exchange:
        await exchange.until_count(1)
        await asyncio.sleep(100)
        exchange.disconnect()
        assert exchange.task is not None
        await asyncio.wait_for(exchange.task, 3)
    assert isinstance(app.ended_by, asyncio.CancelledError)


async def test_an_app_that_is_not_marked_continues_as_without_the_middleware() -> None:
    app = Deaf()
    async with running(SSEMiddleware(app), Exchange(http_scope())) as exchange:
        await exchange.until_count(1)
        exchange.disconnect()
        await asyncio.sleep(100)
        assert app.ended_by is None
        assert exchange.receives == 0


async def test_a_marked_response_that_is_no_event_stream_continues() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for _ in range(100):
            await send(body(b"words, no events\n"))
            await asyncio.sleep(1)
        await send(body(b"", more=False))

    async with running(marking(app), Exchange(http_scope())) as exchange:
        await exchange.until_count(0)
        exchange.disconnect()
        await exchange.until_end()


def repeating(app: ASGIApp, calls: list[float]) -> ASGIApp:
    """Return an app inside a layer that reads the body, as Elastic's agent does to capture it."""

    async def layer(scope: Scope, receive: Receive, send: Send) -> None:
        whole = (await receive())["body"]

        async def repeat() -> Message:
            calls.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0)
            return {"type": "http.request", "body": whole}

        await app(scope, repeat, send)

    return layer


class Reading(Deaf):
    """The same, after it has read its body."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"question"
        await super().__call__(scope, receive, send)


@pytest.mark.parametrize("app", [Deaf(), Reading()], ids=["deaf", "reading"])
@EACH_CLIENT
async def test_a_layer_that_repeats_the_body_is_asked_a_few_times_only(
    app: Deaf, headers: list[tuple[bytes, bytes]]
) -> None:
    calls: list[float] = []
    exchange = Exchange(http_scope(headers=headers), body=b"question")
    async with running(repeating(marking(app), calls), exchange):
        await exchange.until_count(40, "message")
    assert len(calls) <= 3


async def test_an_app_that_receives_late_gets_the_body_that_has_been_received_for_it() -> None:
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(20)
        received.append(await receive())
        received.append(await receive())

    exchange = Exchange(http_scope(), body=b"question")
    async with running(marking(app), exchange):
        await asyncio.sleep(30)
        exchange.disconnect()
        assert exchange.task is not None
        await exchange.task
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]
    assert received[0]["body"] == b"question"


SPAN: contextvars.ContextVar[str] = contextvars.ContextVar("span", default="none")


@pytest.mark.parametrize(
    "options",
    [
        {"mark": "*"},
        {"marks": {"*": streaming(linger_seconds=0)}},
        {"max_streams": 1, "limit_action": "evict_oldest"},
    ],
    ids=["marked", "without linger", "limited"],
)
@EACH_CLIENT
async def test_a_tracer_around_the_middleware_is_called_in_the_context_of_the_request(
    options: Any, headers: list[tuple[bytes, bytes]]
) -> None:
    spans: list[str] = []
    app = SSEMiddleware(Deaf(), **options)

    async def traced(scope: Scope, receive: Receive, send: Send) -> None:
        SPAN.set(scope["path"])

        async def traced_receive() -> Message:
            spans.append(SPAN.get())
            return await receive()

        await app(scope, traced_receive, send)

    accept = [*headers, (b"accept", b"text/event-stream")]
    async with running(traced, Exchange(http_scope(path="/a", headers=accept))) as first:
        await first.until_count(1, "message")
        await asyncio.sleep(6)
        async with running(traced, Exchange(http_scope(path="/b", headers=accept))) as second:
            await asyncio.sleep(6)
            second.disconnect()
    assert spans
    assert spans[0] == "/a"
    assert set(spans) <= {"/a", "/b"}


async def test_a_listener_that_the_app_abandons_gets_a_disconnect() -> None:
    listeners: list[asyncio.Task[Any]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: x\n\n"))
        await asyncio.sleep(6)  # the middleware listens meanwhile
        listeners.extend(asyncio.ensure_future(receive()) for _ in range(2))
        await asyncio.sleep(1)
        await send(body(b"", more=False))

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    exchange._body = None  # the app has read it
    async with running(marking(app), exchange):
        await exchange.until_end()
        found = await asyncio.wait_for(asyncio.gather(*listeners), 10)
    assert found == [{"type": "http.disconnect"}] * 2


async def test_a_layer_that_does_not_end_its_receive_holds_no_request() -> None:
    async def deaf_to_cancellation(scope: Scope, receive: Receive, send: Send) -> None:
        async def stubborn() -> Message:
            while True:
                try:
                    return await receive()
                except asyncio.CancelledError:
                    pass

        await marking(app)(scope, stubborn, send)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(6)
        await send(body(b"data: x\n\n", more=False))

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    exchange._body = None
    async with running(deaf_to_cancellation, exchange):
        assert exchange.task is not None
        await asyncio.wait_for(asyncio.shield(exchange.task), 20)
        exchange.disconnect()  # so that its task can end
        await asyncio.sleep(0.1)
    assert exchange.ended
