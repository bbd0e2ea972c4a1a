"""Responses that the middleware sends in place of the app's response, byte by byte."""

import json
from http import HTTPStatus

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware.config.options import Options
from sse_middleware.http.own_responses import (
    CLIENT,
    PROCESS,
    RATE,
    SHUTDOWN,
    MetricsEndpoint,
    ReplacedResponse,
    send_empty,
    send_readiness,
    send_rejection,
    send_retry_later,
)
from sse_middleware.http.request import SSERequest
from sse_middleware.protocol.event_ids import EventId, parse_event_id
from sse_middleware.protocol.parser import EventParser
from tests.support.asgi import body, http_scope, stream_start

pytestmark = pytest.mark.anyio

EVENT_ID = str(EventId("-" + "A" * 20 + "_", 17))


class Client:
    """What a server would send to a client.

    Attributes:
        messages: the ASGI messages.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> dict[bytes, bytes]:
        pairs: list[tuple[bytes, bytes]] = self.messages[0]["headers"]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    @property
    def body(self) -> bytes:
        assert not self.messages[-1].get("more_body", False)
        return b"".join(message["body"] for message in self.messages[1:])


def request_of() -> SSERequest:
    return SSERequest(http_scope(headers=[(b"x-trace-id", b"t-1")]))


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (PROCESS, 503, "server_full"),
        (CLIENT, 429, "too_many_streams"),
        (RATE, 429, "open_rate_exceeded"),
        (SHUTDOWN, 503, "shutdown"),
    ],
)
async def test_a_rejection_is_json_with_the_time_of_a_retry(
    reason: str, status: int, code: str
) -> None:
    client = Client()
    await send_rejection(client.send, request_of(), reason, 7)
    assert client.status == status
    assert client.headers == {
        b"content-type": b"application/json",
        b"content-length": b"%d" % len(client.body),
        b"retry-after": b"7",
        b"x-trace-id": b"t-1",
        b"cache-control": b"no-store",
        b"vary": b"Last-Event-ID",
    }
    sent = json.loads(client.body)
    assert (sent["error"]["code"], sent["trace_id"]) == (code, "t-1")
    assert client.body == json.dumps(sent).encode()


@pytest.mark.parametrize("held", [EVENT_ID, "17", ""])
async def test_a_client_that_retries_later_keeps_its_event_id(held: str) -> None:
    client, parser = Client(), EventParser()
    await send_retry_later(client.send, request_of(), Options(), held, 8.0)
    assert client.status == 200
    assert client.headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert b"content-length" not in client.headers
    (event,) = parser.feed(client.body)
    assert event.event == "start"
    assert parser.last_event_id == held or (not held and parse_event_id(parser.last_event_id))
    assert parser.retry is not None
    assert 4000 <= parser.retry <= 8000


@pytest.mark.parametrize(
    ("status", "length"),
    [(HTTPStatus.NO_CONTENT, None), (HTTPStatus.SERVICE_UNAVAILABLE, b"0")],
)
async def test_a_response_without_a_body_has_a_length_if_its_status_allows(
    status: HTTPStatus, length: bytes | None
) -> None:
    client = Client()
    await send_empty(client.send, request_of(), status, [(b"access-control-allow-origin", b"*")])
    assert (client.status, client.body) == (status, b"")
    assert client.headers.get(b"content-length") == length
    assert client.headers[b"access-control-allow-origin"] == b"*"
    assert client.headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
async def test_readiness_is_a_status_and_a_word(*, ready: bool, status: int) -> None:
    client = Client()
    await send_readiness(client.send, http_scope(), ready=ready)
    assert client.status == status
    assert client.body == (b"ready\n" if ready else b"draining\n")
    assert client.headers == {
        b"content-type": b"text/plain; charset=utf-8",
        b"content-length": b"%d" % len(client.body),
        b"cache-control": b"no-store",
    }


# Responses of the app that are replaced


OTHER = PlainTextResponse("other", 201)
APP = [{**stream_start(), "status": 404}, body(b"not "), body(b"found", more=False)]


async def test_a_replaced_response_is_sent_once_and_the_app_continues() -> None:
    client = Client()
    replaced = ReplacedResponse(http_scope(), client.send, lambda _: OTHER)
    for message in APP:
        await replaced.send(message)
    assert (client.status, client.body) == (201, b"other")


async def test_a_response_that_is_not_replaced_is_passed_on_as_the_same_messages() -> None:
    client, statuses = Client(), list[int]()
    replaced = ReplacedResponse(http_scope(), client.send, statuses.append)
    for message in APP:
        await replaced.send(message)
    assert all(one is other for one, other in zip(client.messages, APP, strict=True))
    assert statuses == [404]


def metrics(*, first: bool) -> MetricsEndpoint:
    async def exposition(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        assert (message["type"], message["more_body"]) == ("http.request", False)
        await PlainTextResponse("metrics")(scope, receive, send)

    return MetricsEndpoint(exposition, "/metrics", first=first)


async def test_metrics_are_sent_at_once_if_their_path_is_set() -> None:
    client = Client()
    assert await metrics(first=True).handle(http_scope(), client.send) is None
    assert client.body == b"metrics"


async def run(endpoint: MetricsEndpoint, app: ASGIApp) -> bytes:
    client = Client()
    send = await endpoint.handle(http_scope(), client.send)
    assert send is not None
    await app(http_scope(), client.send, send)  # type: ignore[arg-type]  # it receives nothing
    return client.body


@pytest.mark.parametrize("status", [400, 402, 404, 405, 410, 418, 421, 429, 500, 502, 503, 504])
async def test_metrics_replace_each_response_that_does_not_serve_the_path(status: int) -> None:
    endpoint = metrics(first=False)
    missing, present = PlainTextResponse("missing", status), PlainTextResponse("of the app")
    assert [await run(endpoint, app) for app in (missing, present, missing)] == [
        b"metrics",
        b"of the app",
        b"metrics",
    ]


@pytest.mark.parametrize("status", [200, 206, 301, 307, 401, 403])
async def test_a_response_that_serves_the_path_elsewhere_or_forbids_it_is_passed_on(
    status: int,
) -> None:
    endpoint = metrics(first=False)
    assert await run(endpoint, PlainTextResponse("of the app", status)) == b"of the app"
    assert await run(endpoint, PlainTextResponse("missing", 404)) == b"metrics"
