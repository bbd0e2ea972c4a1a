"""`POST /threads/{thread_id}/messages`: cache, ladder, stream, memory and record."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from asgi_lifespan import LifespanManager

from example_app.app import create_app
from example_app.identity import identity_of
from example_app.threads.endpoint import create_threads
from example_app.threads.memory import ProcessMemory, Turn
from tests.support.asgi import Exchange, handle
from tests.support.log_records import stream_fields
from tests.support.upstreams import Answer, Upstream, Visit, upstream_service
from tests.support.waiting import HANG_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

pytestmark = pytest.mark.anyio

QUESTION = "What is the global interpreter lock?"


@pytest.fixture(scope="module")
async def example() -> AsyncIterator[FastAPI]:
    app = create_app(token_delay_seconds=0)
    async with LifespanManager(app):
        yield app


@asynccontextmanager
async def serving(app: FastAPI, answer: Answer) -> AsyncIterator[Upstream]:
    """Give the example a provider that answers so, and no turns."""
    async with (
        upstream_service(answer) as service,
        httpx2.AsyncClient(base_url=service.url, timeout=HANG_SECONDS) as client,
    ):
        create = partial(create_threads, app.state.index, token_delay_seconds=0)
        app.state.threads = create(client=client)
        yield service


async def post(app: FastAPI, thread: str, content: str = QUESTION, user: str = "") -> Exchange:
    headers = [(b"content-type", b"application/json"), (b"accept", b"text/event-stream")]
    if user:
        headers.append((b"authorization", user.encode()))
    data = json.dumps({"content": content}).encode()
    path = f"/threads/{thread}/messages"
    return await handle(app, method="POST", path=path, headers=headers, body=data)


async def turns(app: FastAPI, thread: str) -> list[dict[str, str]]:
    exchange = await handle(app, path=f"/threads/{thread}/messages")
    found: list[dict[str, str]] = json.loads(exchange.body)
    return found


def text_of(exchange: Exchange) -> str:
    *deltas, done = exchange.events
    assert {event.event for event in deltas} == {"delta"}
    assert (done.event, json.loads(done.data)) == ("done", {"type": "done"})
    return "".join(json.loads(event.data)["delta"] for event in deltas)


def event(data: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(data).encode()


def delta(content: str, status: str = "typing") -> bytes:
    usage = {"input_tokens": 4, "output_tokens": 2}
    return event({"choices": [{"delta": {"content": content, "status": status}}], "usage": usage})


async def hello(visit: Visit) -> None:
    await visit.start()
    await visit.chunk(event({"response.created": {"parent_id": f"p{id(visit)}"}}))
    for part in (delta("Hello"), delta(", you"), delta("", "finished")):
        await visit.chunk(part)
    await visit.end()


async def refuse(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


async def cut(visit: Visit) -> None:
    await visit.start()
    await visit.chunk(delta("Hel"))
    visit.cut()


async def test_an_answer_is_deltas_and_done_and_two_turns(example: FastAPI) -> None:
    async with serving(example, hello):
        assert text_of(await post(example, "a")) == "Hello, you"
        assert await turns(example, "a") == [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": "Hello, you"},
        ]


async def test_an_equal_message_is_answered_from_the_cache(
    example: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    async with serving(example, hello) as service:
        exchanges = [await post(example, "b") for _ in range(3)]
        assert len(service.visits) == 1
        assert {text_of(exchange) for exchange in exchanges} == {"Hello, you"}
        assert [one.headers.get(b"x-stream-cache") for one in exchanges] == [None, b"hit", b"hit"]
        assert len(await turns(example, "b")) == 2
        for thread, content, user in (
            ("b2", QUESTION, ""),
            ("b", "else", ""),
            ("b", QUESTION, "u"),
        ):
            await post(example, thread, content, user)
        assert len(service.visits) == 4
    hits = [fields["cache_hit"] for fields in stream_fields(caplog)]
    assert hits == [False, True, True, False, False, False]


async def test_a_hundred_equal_messages_call_the_provider_once(example: FastAPI) -> None:
    async with serving(example, hello) as service:
        exchanges = await asyncio.gather(*[post(example, "many") for _ in range(100)])
        assert {text_of(exchange) for exchange in exchanges} == {"Hello, you"}
        assert len(service.visits) == 1


async def test_the_second_provider_answers_if_the_first_one_fails(
    example: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    async with serving(example, refuse):
        exchange = await post(example, "c")
    assert "executes Python bytecode at a time" in text_of(exchange)
    starts = [m for _, m in exchange.messages if m["type"] == "http.response.start"]
    assert len(starts) == 1
    (record,) = stream_fields(caplog)
    assert (record["source"], record["fallback_used"]) == ("corpus", True)


async def test_an_answer_that_is_cut_is_no_turn_and_not_cached(example: FastAPI) -> None:
    async with serving(example, cut) as service:
        for visits in (1, 2):
            with pytest.raises(Exception):  # noqa: B017 - Starlette groups it or not
                await post(example, "d")
            assert len(service.visits) == visits
        assert await turns(example, "d") == []


async def test_the_turns_of_a_thread_are_chained_at_the_provider(example: FastAPI) -> None:
    async with serving(example, hello) as service:
        for content in ("one", "two"):
            await post(example, "e", content)
        first, second = [visit.json() for visit in service.visits]
        assert first["parent_id"] is None
        assert second["parent_id"] == f"p{id(service.visits[0])}"
        contents = [turn["content"] for turn in await turns(example, "e")]
        assert contents == ["one", "Hello, you", "two", "Hello, you"]


async def test_each_turn_is_logged_after_its_end_with_its_tokens(
    example: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    def logged() -> list[str]:  # without the turns of earlier tests, which may be late
        return [message for message in caplog.messages if "thread f" in message]

    caplog.set_level(logging.INFO, "example_app.threads")
    async with serving(example, hello):
        await post(example, "f")
        await until(lambda: bool(logged()), "the turn was not logged")
    assert logged() == ["turn of thread f: finished, 2 pieces, 4 tokens in, 2 out"]


async def test_the_memory_of_a_process_is_bounded() -> None:
    memory = ProcessMemory()
    for number in range(1001):
        await memory.add_turn(str(number), Turn("user", "x"))
    assert await memory.turns("0") == []
    for _ in range(101):
        await memory.add_turn("1000", Turn("user", "y"))
    assert [turn.content for turn in await memory.turns("1000")] == ["y"] * 100


def test_an_anonymous_request_has_an_identity_only_at_the_threads() -> None:
    def identity(path: str, *headers: tuple[bytes, bytes]) -> str | None:
        return identity_of({"path": path, "headers": headers})

    assert identity("/threads/1/messages") == "public"
    assert identity("/search") is None
    assert identity("/search", (b"authorization", b"Bearer x")) == "Bearer x"
