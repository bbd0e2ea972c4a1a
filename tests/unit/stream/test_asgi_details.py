"""Messages that few apps send, on marked streams: they keep their order and their meaning."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import SSEMiddleware
from tests.support.asgi import EVENTSOURCE, Exchange, body, handle, http_scope, stream_start
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio

CLIENTS = pytest.mark.parametrize("headers", [EVENTSOURCE, []], ids=["eventsource", "plain"])
TRAILERS: Message = {"type": "http.response.trailers", "headers": [(b"server-timing", b"a")]}


def bodies(exchange: Exchange) -> list[bytes]:
    return [m["body"] for _, m in exchange.messages if m["type"] == "http.response.body"]


@pytest.mark.parametrize("make", [SSEMiddleware, marking], ids=["unmarked", "marked"])
@CLIENTS
@pytest.mark.parametrize("empties", [1, 3])
async def test_an_empty_first_chunk_reaches_the_server_which_may_wait_for_it(
    make: Any, headers: list[tuple[bytes, bytes]], empties: int
) -> None:
    """Hypercorn and others send the response head with the first part of the body."""
    seen: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for _ in range(empties):
            await send(body(b""))
        seen.append(len(bodies(exchange)))
        await asyncio.sleep(1)
        await send(body(b"data: 1\n\n"))
        await send(body(b"", more=False))

    exchange = Exchange(http_scope(headers=headers))
    await make(app)(exchange.scope, exchange.receive, exchange.send)
    assert seen[0] >= 1
    assert [event.data for event in exchange.events if event.event == "message"] == ["1"]
    assert exchange.ended


@pytest.mark.parametrize("make", [SSEMiddleware, marking], ids=["unmarked", "marked"])
@CLIENTS
async def test_a_body_message_after_the_end_reaches_the_server_which_raises(
    make: Any, headers: list[tuple[bytes, bytes]]
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"data: 1\n\n"))
        await send(body(b"", more=False))
        exchange.refusal = RuntimeError("response already completed")  # as uvicorn raises
        await send(body(b"data: 2\n\n"))

    exchange = Exchange(http_scope(headers=headers))
    with pytest.raises(RuntimeError, match="already completed"):
        await make(app)(exchange.scope, exchange.receive, exchange.send)


@CLIENTS
async def test_the_trailers_of_an_app_follow_its_end(headers: list[tuple[bytes, bytes]]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**stream_start(), "trailers": True})
        await send(body(b"data: 1\n\n", more=False))
        await send(TRAILERS)

    exchange = await handle(marking(app), headers=headers)
    types = [message["type"] for _, message in exchange.messages]
    assert types.count("http.response.trailers") == 1
    assert exchange.messages[-1][1] == TRAILERS


@pytest.mark.parametrize("has_trailers", [True, False])
@pytest.mark.parametrize("end", ["cap", "exception"])
async def test_an_end_of_ours_completes_a_response_that_has_announced_trailers(
    end: str, *, has_trailers: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({**stream_start(), "trailers": has_trailers})
        await send(body(b"data: 1\n\n"))
        if end == "exception":
            raise ValueError
        await asyncio.sleep(1000)

    exchange = Exchange(http_scope(headers=EVENTSOURCE))
    call = marking(app, stream_max_seconds=2)(exchange.scope, exchange.receive, exchange.send)
    (failure,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(failure, ValueError) is (end == "exception")
    types = [message["type"] for _, message in exchange.messages]
    assert exchange.names[-1] == ("error" if end == "exception" else "complete")
    assert exchange.ended
    assert types.count("http.response.trailers") == int(has_trailers)
    if has_trailers:
        assert exchange.messages[-1][1]["type"] == "http.response.trailers"
        assert not exchange.messages[-1][1].get("more_trailers")
        assert not exchange.messages[-2][1]["more_body"]


FILE = b"ta: 1\n\ndata: 2\n\ndata: 3\n\nda"


@CLIENTS
@pytest.mark.parametrize("is_descriptor", [True, False])
@pytest.mark.parametrize("more", [True, False])
def test_a_file_that_is_sent_by_zero_copy_does_not_overtake_a_part_of_an_event(
    headers: list[tuple[bytes, bytes]], tmp_path: Path, *, is_descriptor: bool, more: bool
) -> None:
    path = tmp_path / "events"
    path.write_bytes(b"skipped" + FILE + b"not sent")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await send(body(b"da"))
        with path.open("rb") as file:
            await send(
                {
                    "type": "http.response.zerocopysend",
                    "file": file.fileno() if is_descriptor else file,
                    "offset": 7,
                    "count": len(FILE),
                    "more_body": True,
                }
            )
        await send(body(b"ta: 4\n\n", more=more))
        if more:
            descriptor = os.open(path, os.O_RDONLY)
            os.lseek(descriptor, 7 + len(b"ta: 1\n\n"), os.SEEK_SET)
            count = len(b"data: 2\n\n")
            message = {"type": "http.response.zerocopysend", "file": descriptor, "count": count}
            await send(message)
            os.close(descriptor)

    # A thread reads the file, which the virtual clock does not know.
    exchange = asyncio.run(handle(marking(app), headers=headers))
    numbers = [event.data for event in exchange.events if event.event == "message"]
    assert numbers == ["1", "2", "3", "4", *(["2"] if more else [])]
    assert exchange.ended
    assert all(message["type"].endswith(("start", "body")) for _, message in exchange.messages)


async def test_json_that_is_nested_deeply_raises_nothing_into_the_app() -> None:
    deep = b'data: {"object":"chat.completion.chunk","x":%b}\n\n' % (b"[" * 5000 + b"]" * 5000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for _ in range(2):
            await send(body(deep))
            await asyncio.sleep(1)
        await send(body(b"", more=False))

    exchange = await handle(marking(app, trace_in_data=True))
    # From Python 3.13 on, it can be decoded, so that the events have the trace id.
    assert re.sub(rb',? ?"trace_id": ?"[^"]*",? ?', b"", exchange.body) == deep * 2
