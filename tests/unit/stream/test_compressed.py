"""Streams in a content coding: the same bytes for the client, at the same time, also resumed."""

from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import ConfigurationError, SSEMiddleware
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    stream_of,
    stream_start,
)
from tests.support.codings import CODINGS, decoded
from tests.support.log_records import stream_fields
from tests.support.middleware import marking
from tests.support.resuming import Counting, left, resumable

pytestmark = pytest.mark.anyio

CHUNKS = (b"data: to\n\n", b"data: be\n", b"\ndata: \xc3\xa9\n\n: c\n\n", b"data: end\n\n")
ALL = [(b"accept-encoding", b"gzip, deflate, br, zstd")]


def bodies(exchange: Exchange) -> list[bytes]:
    return [message.get("body", b"") for _, message in exchange.messages[1:]]


def decode(exchange: Exchange) -> bytes:
    """Return the body of a response as its client reads it."""
    coding = exchange.headers[b"content-encoding"].decode()
    return b"".join(decoded(coding, *bodies(exchange)))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pause", [0.0, 1.0])
async def test_a_client_reads_the_bytes_of_the_app(coding: str, pause: float) -> None:
    app = marking(stream_of(*CHUNKS, pause=pause), compression=coding)
    exchange = await handle(app, headers=ALL)
    assert decode(exchange) == b"".join(CHUNKS)
    assert exchange.headers[b"vary"] == b"Accept-Encoding"
    assert b"no-transform" in exchange.headers[b"cache-control"]


@pytest.mark.parametrize("coding", CODINGS)
async def test_each_event_and_heartbeat_is_readable_when_it_arrives(coding: str) -> None:
    app = marking(stream_of(*CHUNKS[:1], pause=12), compression=coding)
    exchange = await handle(app, headers=[*EVENTSOURCE, *ALL])
    arrived = decoded(coding, *bodies(exchange))
    assert arrived[0].startswith(b"event: start\n")
    assert arrived[1].startswith(b"event: heartbeat\n")
    assert any(part.startswith(CHUNKS[0][:-1]) for part in arrived)
    assert arrived[-1].startswith(b"event: complete\n")
    assert all(part.endswith(b"\n\n") for part in arrived)


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_stream_is_resumed_in_another_coding(coding: str) -> None:
    app = resumable(Counting(6), compression=("gzip", coding))
    async with left(app, 3) as first:  # without a coding
        before = [event.data for event in first.events if event.event == "message"]
        resuming = (b"last-event-id", first.last_event_id.encode())
        accepting = (b"accept-encoding", coding.encode())
        again = await handle(app, headers=[*EVENTSOURCE, resuming, accepting])
    text = decode(again).decode()
    after = [
        line[6:] for line in text.splitlines() if line.startswith("data: ") and "{" not in line
    ]
    assert [*before, *after] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        ([], []),
        ([(b"accept-encoding", b"gzip;q=0")], []),
        (ALL, [(b"content-encoding", b"identity")]),
        (ALL, [(b"content-encoding", b"none")]),
    ],
)
async def test_clients_and_apps_can_refuse_a_coding(headers: Any, sent: Any) -> None:
    app = stream_of(*CHUNKS, headers=sent)
    exchange = await handle(marking(app, compression="gzip"), headers=headers)
    assert exchange.body == b"".join(CHUNKS)
    assert exchange.headers.get(b"content-encoding") == (sent[0][1] if sent else None)
    assert exchange.headers[b"vary"] == b"Accept-Encoding"


async def test_nothing_else_is_changed() -> None:
    coded = stream_of(b"\x1f\x8b", headers=[(b"content-encoding", b"gzip")])
    for app in (SSEMiddleware(stream_of(*CHUNKS), compression="gzip"), marking(coded)):
        exchange = await handle(app, headers=ALL)
        assert b"vary" not in exchange.headers
    assert exchange.body == b"\x1f\x8b"
    app = marking(stream_of(*CHUNKS))
    assert (await handle(app, headers=ALL)).body == b"".join(CHUNKS)


async def test_empty_messages_cost_no_bytes_and_trailers_follow_the_end() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**stream_start(), "trailers": True})
        await send(body(b""))
        await send(body(CHUNKS[0]))
        await send(body(b"", more=False))
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    exchange = await handle(marking(app, compression="gzip"), headers=ALL)
    kinds = [message["type"] for _, message in exchange.messages]
    assert kinds[-1] == "http.response.trailers"
    assert decode(exchange) == CHUNKS[0]
    assert bodies(exchange)[0] == b""


async def test_the_numbers_of_a_stream_are_those_of_the_app(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app: ASGIApp = marking(stream_of(*CHUNKS, pause=1), compression="gzip")
    with caplog.at_level("INFO", "sse_middleware"):
        await handle(app, headers=ALL)
    (fields,) = stream_fields(caplog)
    assert fields["sent_bytes"] == len(b"".join(CHUNKS))


@pytest.mark.parametrize("value", ["deflate", "gzip,lzma", ("gzip", 1), True])
def test_an_unknown_coding_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="zstd, br or gzip; zstd and br need sse-middl"):
        SSEMiddleware(stream_of(), compression=value)
