"""The stream of a POST: a GET resumes it, and a POST does only with the same body."""

from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware.http.body_digest import BodyDigest
from tests.support.asgi import Exchange, body, handle, http_scope, running, stream_start
from tests.support.resuming import (
    UNKNOWN,
    Chunked,
    Counting,
    back,
    counted,
    id_of,
    living,
    resumable,
    resume,
    texts,
)

pytestmark = pytest.mark.anyio

NAMED = [(b"accept", b"text/event-stream;events=named")]
"""The headers of a client that wants named events and ids from a POST."""
MEBIBYTE = 1 << 20


async def post(app: SSEMiddleware, *parts: bytes) -> Exchange:
    exchange = Chunked(http_scope(method="POST", headers=NAMED), *parts)
    await app(exchange.scope, exchange.receive, exchange.send)
    return exchange


async def post_again(app: SSEMiddleware, event_id: str, *parts: bytes, **kind: Any) -> Exchange:
    exchange = Chunked(http_scope(method="POST", headers=back(event_id)), *parts, **kind)
    await app(exchange.scope, exchange.receive, exchange.send)
    return exchange


async def test_a_get_resumes_the_stream_of_a_post() -> None:
    counting = Counting(5)
    app = resumable(counting)
    whole = await post(app, b'{"prompt":"x"}')
    assert texts(await resume(app, id_of(whole, 3))) == counted(4, 5)
    assert len(counting.scopes) == 1


async def test_a_get_without_an_origin_resumes_a_public_post_with_one() -> None:
    # A browser sends the origin with each POST, and not with a GET of the same origin.
    app = resumable(Counting(5, headers={"access-control-allow-origin": "*"}))
    origin = (b"origin", b"https://a.example")
    whole = await handle(app, method="POST", headers=[*NAMED, origin], body=b"{}")
    assert texts(await resume(app, id_of(whole, 3))) == counted(4, 5)


@pytest.mark.parametrize("first", [[b"{}"], [b"{", b"", b"}"]], ids=str)
@pytest.mark.parametrize("again", [[b"{}"], [b"{", b"}"], [b"", b"{}", b""]], ids=str)
async def test_a_post_resumes_with_the_same_body_in_any_chunks(
    first: list[bytes], again: list[bytes]
) -> None:
    counting = Counting(5)
    app = resumable(counting)
    whole = await post(app, *first)
    assert texts(await post_again(app, id_of(whole, 3), *again)) == counted(4, 5)
    assert len(counting.scopes) == 1


@pytest.mark.parametrize("parts", [[b'{"n":2}'], [b'{"n"', b":2}"], [b""], [b'{"n":1} ']], ids=str)
async def test_a_post_with_another_body_is_another_question_and_reaches_the_app_whole(
    parts: list[bytes],
) -> None:
    counting = Counting(5)
    app = resumable(counting)
    whole = await post(app, b'{"n":1}')
    again = await post_again(app, id_of(whole, 3), *parts)
    assert again.names[0] == "reset"
    assert texts(again) == counted(1, 5)
    assert counting.bodies == [b'{"n":1}', b"".join(parts)]


async def test_a_post_of_an_unknown_stream_reaches_the_app_whole() -> None:
    counting = Counting(2)
    again = await post_again(resumable(counting), UNKNOWN, b"a", b"b")
    assert again.names[0] == "reset"
    assert counting.bodies == [b"ab"]


async def test_a_post_resumes_the_stream_of_a_get_only_with_the_same_empty_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        runs.append(scope["method"])
        await receive()
        await send(stream_start())
        await send(body(b"data: 1\n\ndata: 2\n\n", more=False))

    runs: list[str] = []
    kept = resumable(app)
    whole = await handle(kept, headers=[*NAMED])
    again = await post_again(kept, id_of(whole, 1), b"{}")
    assert again.names[0] == "reset"
    assert runs == ["GET", "POST"]


@pytest.mark.parametrize("more", [0, 1])
async def test_a_body_of_a_mebibyte_resumes_and_a_longer_one_only_reaches_the_app(
    more: int,
) -> None:
    counting = Counting(2)
    app = resumable(counting)
    parts = [b"x" * (MEBIBYTE // 4)] * 4 + [b"x" * more]
    whole = await post(app, *parts)
    again = await post_again(app, id_of(whole, 1), *parts)
    assert again.names[0] == ("reset" if more else "start")
    assert [len(each) for each in counting.bodies] == [MEBIBYTE + more] * (1 + more)
    assert texts(await resume(app, id_of(whole, 1))) == ["2"]


async def test_the_digest_is_released_when_its_stream_opens() -> None:
    before = living(BodyDigest)
    app = resumable(Counting(5))
    exchange = Chunked(http_scope(method="POST", headers=NAMED), b"x" * 1000, b"y" * 1000)
    async with running(app, exchange):
        await exchange.until_count(1, "message")
        assert len(living(BodyDigest)) == len(before)


async def test_a_body_that_is_cut_off_resumes_nothing() -> None:
    received: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        while message.get("more_body"):
            message = await receive()
        received.append(message["type"])
        await send(stream_start())
        await send(body(b"data: 1\n\ndata: 2\n\n", more=False))

    kept = resumable(app)
    whole = await post(kept, b"{}")
    again = await post_again(kept, id_of(whole, 1), b"{}", cut=True)
    assert again.names[:1] in ([], ["reset"])
    assert received == ["http.request", "http.disconnect"]


async def test_an_app_that_responds_before_it_has_read_the_body_is_resumed_by_a_get_only() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await receive()
        await send(body(b"data: 1\n\ndata: 2\n\n", more=False))

    kept = resumable(app)
    whole = await post(kept, b"{}")
    assert texts(await resume(kept, id_of(whole, 1))) == ["2"]
    again = await post_again(kept, id_of(whole, 1), b"{}")
    assert again.names[0] == "reset"


async def test_an_unread_body_is_still_available_to_an_app_that_runs_again() -> None:
    counting = Counting(5)
    app = resumable(counting)
    whole = await post(app, b"1")
    exchange = Chunked(http_scope(method="POST", headers=back(id_of(whole, 2))), b"2", b"3")
    async with running(app, exchange):
        await exchange.until_count(2, "message")
        exchange.disconnect()  # the app receives it after the body, which we have read before
        assert exchange.task is not None
        await exchange.task
    assert counting.bodies == [b"1", b"23"]
    assert counting.ends == ["finished", "finished"]
