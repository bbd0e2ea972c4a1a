"""Clients that continue by name after an event that they have: at the end, and at the beginning."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sse_middleware import current_stream, resume_endpoint
from sse_middleware.stores.base import LogSnapshot
from sse_middleware.stores.memory import MemoryStore
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_start,
)
from tests.support.resuming import resumable

pytestmark = pytest.mark.anyio

ANN = (b"authorization", b"Bearer ann")
OPENAI = b'data: {"object":"chat.completion.chunk","id":"c"}\n\n'


class Chat:
    """An app that sends messages in a stream with a name, and ends as its last one says."""

    def __init__(
        self, *messages: Message | Exception, finished: Literal["replay"] | None = None
    ) -> None:
        self._messages = messages
        self._live = resume_endpoint("chat", finished=finished)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/live":
            await self._live(scope, receive, send)
            return
        current_stream().name("chat")
        await send(stream_start())
        for message in self._messages:
            if isinstance(message, Exception):
                raise message
            await send(message)
            await asyncio.sleep(0.01)


def posted(app: ASGIApp) -> AbstractAsyncContextManager[Exchange]:
    return running(app, Exchange(http_scope(method="POST", headers=[ANN])))


@asynccontextmanager
async def ended(app: ASGIApp) -> AsyncIterator[None]:
    """Run an app to its end on a POST, whatever the end is."""
    async with posted(app):
        await asyncio.sleep(1)
        yield


async def get(app: ASGIApp, query: bytes, *headers: tuple[bytes, bytes]) -> Exchange:
    return await handle(app, headers=[ANN, *headers], path="/live", query_string=query)


# At the end of a stream. Most clients receive no end event: the response ends cleanly or not.


@pytest.mark.parametrize(
    ("last", "tail"),
    [(b"data: 2\n\n", b""), (b"data: 2\n\n", b": bye\n\n"), (b"data: [DONE]\n\n", b"data: tail")],
)
async def test_the_response_is_clean_and_has_all_that_follows_if_the_stream_has_finished(
    last: bytes, tail: bytes
) -> None:
    app = resumable(Chat(body(OPENAI), body(last), body(tail, more=False)))
    async with ended(app):
        for _ in range(2):
            again = await get(app, b"after=2")
            assert (again.status, again.body, again.ended) == (200, tail, True)
        assert (await get(app, b"after=3")).status == 204
        assert (await get(app, b"")).status == 204, "nothing is running"


@pytest.mark.parametrize(
    "messages",
    [[body(b"data: 1\n\n"), ValueError("no")], [body(b"data: 1\n\n")]],
    ids=["failed", "lost"],
)
async def test_the_response_ends_uncleanly_if_the_stream_has_not_finished(
    messages: list[Message | Exception],
) -> None:
    app = resumable(Chat(*messages))
    with contextlib.suppress(ValueError):
        async with ended(app):
            for query in (b"after=0", b"after=1", b"after=1"):
                again = await get(app, query)
                rest = b"data: 1\n\n" if query == b"after=0" else b""
                assert (again.status, again.body, again.ended) == (200, rest, False), query


@pytest.mark.parametrize("finished", ["replay", None])
async def test_a_lost_stream_is_replayed_with_its_unclean_end(
    finished: Literal["replay"] | None,
) -> None:
    app = resumable(Chat(body(b"data: 1\n\n"), finished=finished))
    async with ended(app):
        again = await get(app, b"")
        expected = (200, b"data: 1\n\n", False) if finished else (204, b"", True)
        assert (again.status, again.body, again.ended) == expected


async def test_an_sdk_receives_the_error_of_a_stream_that_has_failed() -> None:
    app = resumable(Chat(body(OPENAI), ValueError("no")))
    with contextlib.suppress(ValueError):
        async with ended(app):
            again = await get(app, b"after=1")
            assert again.ended
            error, done = again.body.removesuffix(b"\n\n").split(b"\n\n")
            assert b'"error"' in error
            assert done == b"data: [DONE]"


@pytest.mark.parametrize("first", [OPENAI, b": hello\n\n" + OPENAI.replace(b"\n", b"\r\n")])
async def test_an_sdk_receives_an_error_if_the_producer_of_its_stream_is_lost(first: bytes) -> None:
    app = resumable(Chat(body(first), body(b"data: {}\n\n")))
    async with ended(app):
        again = await get(app, b"after=0")
        assert again.ended
        *_, error, done = again.body.removesuffix(b"\n\n").replace(b"\r", b"").split(b"\n\n")
        assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "server_error"
        assert done.strip() == b"data: [DONE]"


async def test_a_client_that_asks_again_after_a_stop_gets_204() -> None:
    app = resumable(Chat(*[body(b"data: 1\n\n")] * 1000))
    async with ended(app):
        stop = await handle(app, method="DELETE", headers=[ANN], path="/live")
        assert stop.status == 204
        await asyncio.sleep(2)
        kept = len((await get(app, b"after=0")).body) // len(b"data: 1\n\n")
        assert kept
        assert (await get(app, b"after=%d" % kept)).status == 204


async def test_an_eventsource_that_has_no_id_of_the_stream_gets_204() -> None:
    app = resumable(Chat(body(b"data: 1\n\n"), body(b"", more=False)))
    async with ended(app):
        assert (await get(app, b"after=1", *EVENTSOURCE)).status == 204


# At the beginning of a stream, which the process of the request may not know yet


class LateStore(MemoryStore):
    """A shared store that knows of a name after some look-ups.

    Attributes:
        late: the number of look-ups by name that find nothing.
    """

    is_shared = True
    late = 3

    async def find_named(self, name: str) -> LogSnapshot | None:
        self.late -= 1
        return None if self.late >= 0 else await super().find_named(name)


@pytest.mark.parametrize("query", [b"after=1", b"starting_after=1"])
async def test_a_client_with_an_event_finds_a_stream_that_is_not_stored_yet(query: bytes) -> None:
    app = resumable(Chat(body(b"data: 1\n\n"), body(b"data: 2\n\n", more=False)), store=LateStore())
    async with ended(app):
        again = await get(app, query)
        assert (again.status, again.body, again.ended) == (200, b"data: 2\n\n", True)


async def test_an_eventsource_finds_a_named_stream_that_is_not_stored_yet() -> None:
    store = LateStore()
    store.late = 0
    app = resumable(Chat(*[body(b"data: 1\n\n")] * 100), store=store)
    async with posted(app):
        async with running(
            app, Exchange(http_scope(headers=[ANN, *EVENTSOURCE], path="/live"))
        ) as cut:
            await cut.until_count(1, "message")
        store.late = 3
        again = await get(app, b"", *EVENTSOURCE, (b"last-event-id", cut.last_event_id.encode()))
        assert again.names[0] == "start"


async def test_a_stop_finds_a_stream_that_is_not_stored_yet() -> None:
    app = resumable(Chat(*[body(b"data: 1\n\n")] * 1000), store=LateStore())
    async with posted(app) as first:
        stop = await handle(app, method="DELETE", headers=[ANN], path="/live")
        assert stop.status == 204
        await asyncio.sleep(2)
        assert first.body.count(b"data") < 100


async def test_a_page_that_only_looks_for_a_stream_does_not_wait() -> None:
    store = LateStore()
    store.late = 1000
    app = resumable(Chat(body(b"data: 1\n\n")), store=store)
    before = asyncio.get_running_loop().time()
    assert (await get(app, b"")).status == 204
    assert asyncio.get_running_loop().time() == before
    assert store.late == 999
    assert (await get(app, b"after=1")).status == 204
    assert store.late < 999 - 3
