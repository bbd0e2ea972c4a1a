"""`POST /v1/chat/completions`, line by line of its report: the upstream is a real socket here."""

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
from example_app.completions.endpoint import create_handler
from example_app.completions.sessions import MemorySessions, get_or_create_session
from tests.support.asgi import Exchange, handle, http_scope, running
from tests.support.log_records import stream_fields
from tests.support.upstreams import Answer, Upstream, Visit, upstream_service
from tests.support.waiting import HANG_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI
    from starlette.types import ASGIApp

pytestmark = pytest.mark.anyio

QUESTION = [{"role": "user", "content": "What is the global interpreter lock?"}]


@pytest.fixture(scope="module", autouse=True)
async def example() -> AsyncIterator[FastAPI]:
    """Run the example once, because it indexes its corpus when it starts."""
    app = create_app(token_delay_seconds=0)
    async with LifespanManager(app):
        EXAMPLE.append(app)
        yield app
        EXAMPLE.clear()


EXAMPLE: list[FastAPI] = []


@asynccontextmanager
async def serving(answer: Answer | None = None) -> AsyncIterator[tuple[ASGIApp, Upstream]]:
    """Give the example an upstream that answers so, or its own service, and no sessions."""
    (app,) = EXAMPLE
    create = partial(create_handler, app.state.index, token_delay_seconds=0)
    if answer is None:
        app.state.completions = create()
        yield app, Upstream()
        return
    async with (
        upstream_service(answer) as service,
        httpx2.AsyncClient(base_url=service.url, timeout=HANG_SECONDS) as client,
    ):
        app.state.completions = create(client=client)
        yield app, service


async def post(app: ASGIApp, path: str = "/v1/chat/completions", **body: Any) -> Exchange:
    data = json.dumps({"messages": QUESTION, "stream": True, **body}).encode()
    headers = [(b"content-type", b"application/json"), (b"accept", b"application/json")]
    return await handle(app, method="POST", path=path, headers=headers, body=data)


def chunks_of(exchange: Exchange) -> list[dict[str, Any]]:
    *events, done = exchange.events
    assert done.data == "[DONE]"
    return [json.loads(event.data) for event in events]


def text_of(chunks: list[dict[str, Any]]) -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", ())]
    return "".join(delta.get("content", "") for delta in deltas)


def created(parent_id: str) -> bytes:
    ids = {"chat_id": "c", "parent_id": parent_id, "response_id": "r"}
    return b"data: %b\n\n" % json.dumps({"response.created": ids}).encode()


def delta(content: str, status: str = "typing") -> bytes:
    usage = {"input_tokens": 4, "output_tokens": 2}
    choices = [{"delta": {"role": "assistant", "content": content, "status": status}}]
    return b"data: %b\n\n" % json.dumps({"choices": choices, "usage": usage}).encode()


def answering(*parts: bytes, ends: bool = True) -> Answer:
    async def answer(visit: Visit) -> None:
        await visit.start()
        for part in parts:
            await visit.chunk(part)
        if ends:
            await visit.end()
        else:
            visit.cut()

    return answer


WHOLE = (created("p1"), delta("Hello"), delta(", you"), delta("", "finished"))


async def test_the_headers_are_those_of_the_report() -> None:
    async with serving(answering(*WHOLE)) as (app, _):
        headers = (await post(app)).headers
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache, no-transform"
    assert headers[b"connection"] == b"keep-alive"  # of the app itself
    assert headers[b"x-accel-buffering"] == b"no"


async def test_deltas_become_chunks_and_the_end_has_finish_usage_and_done() -> None:
    async with serving(answering(*WHOLE)) as (app, _):
        exchange = await post(app)
    *content, finish, usage = chunks_of(exchange)
    assert [chunk["choices"][0]["delta"] for chunk in content] == [
        {"role": "assistant", "content": "Hello"},
        {"content": ", you"},
    ]
    assert finish["choices"] == [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 6)
    assert {chunk["object"] for chunk in (*content, finish, usage)} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in (*content, finish, usage)}) == 1
    assert b"response.created" not in exchange.body


@pytest.mark.parametrize(("body", "model"), [({}, "qwen3-max"), ({"model": "mine"}, "mine")])
async def test_the_model_is_passed_to_the_upstream_and_to_the_answer(
    body: dict[str, Any], model: str
) -> None:
    async with serving(answering(*WHOLE)) as (app, service):
        assert {chunk["model"] for chunk in chunks_of(await post(app, **body))} == {model}
        assert service.visits[0].json()["model"] == model
        document = json.loads((await post(app, stream=False, **body)).body)
    assert (document["object"], document["model"]) == ("chat.completion", model)
    assert document["choices"][0]["message"] == {"role": "assistant", "content": "Hello, you"}
    assert document["usage"]["completion_tokens"] == 2


async def test_each_chunk_is_sent_at_once() -> None:
    goes_on = asyncio.Event()

    async def answer(visit: Visit) -> None:
        await visit.start()
        for part in WHOLE[:2]:
            await visit.chunk(part)
        await goes_on.wait()
        for part in WHOLE[2:]:
            await visit.chunk(part)
        await visit.end()

    async with serving(answer) as (app, _), streaming(app) as exchange:
        first = await exchange.until_count(1)
        assert json.loads(first[0].data)["choices"][0]["delta"]["content"] == "Hello"
        goes_on.set()
        await exchange.until_end()


@asynccontextmanager
async def streaming(app: ASGIApp) -> AsyncIterator[Exchange]:
    body = json.dumps({"messages": QUESTION, "stream": True}).encode()
    headers = [(b"content-type", b"application/json")]
    scope = http_scope(method="POST", path="/v1/chat/completions", headers=headers)
    async with running(app, Exchange(scope, body=body)) as exchange:
        yield exchange


async def test_the_parent_id_is_chained_over_the_turns_of_a_conversation() -> None:
    turns = iter(("p1", "p2", "p3"))

    async def answer(visit: Visit) -> None:
        await answering(created(next(turns)), *WHOLE[1:])(visit)

    more = [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "And?"}]
    async with serving(answer) as (app, service):
        await post(app)
        await post(app, messages=[*QUESTION, *more])
        await post(app, messages=[*QUESTION, *more, *more], stream=False)
        requests = [visit.json() for visit in service.visits]
    assert [request["parent_id"] for request in requests] == [None, "p1", "p2"]
    assert [request["messages"][0]["content"] for request in requests][1:] == ["And?", "And?"]
    assert len({request["chat_id"] for request in requests}) == 1


async def test_a_stream_that_is_cut_ends_in_an_error_and_leaves_the_session_as_it_was() -> None:
    answers = iter((answering(*WHOLE[:2], ends=False), answering(*WHOLE[:3]), answering(*WHOLE)))

    async def answer(visit: Visit) -> None:
        await next(answers)(visit)

    async with serving(answer) as (app, service):
        for text in ("Hello", "Hello, you"):
            exchange = await post_to_the_end(app)
            assert text_of(chunks_of(exchange)) == text
            assert "error" in chunks_of(exchange)[-1]
            assert b"127.0.0.1" not in exchange.body
        await post(app)
        assert [visit.json()["parent_id"] for visit in service.visits] == [None, None, None]


async def post_to_the_end(app: ASGIApp) -> Exchange:
    async with streaming(app) as exchange:
        await exchange.until_end()
        return exchange


@pytest.mark.parametrize("lines", [b"HTTP/1.1 500 Oops\r\n", b"HTTP/1.1 401 No\r\n"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_before_the_stream_is_a_status(lines: bytes, stream: bool) -> None:  # noqa: FBT001 - a parameter
    async def refuse(visit: Visit) -> None:
        await visit.send(lines + b"content-length: 6\r\n\r\nsecret")

    async with serving(refuse) as (app, _):
        exchange = await post(app, stream=stream)
    assert exchange.status == 502
    assert json.loads(exchange.body)["error"]["type"] == "upstream_error"
    assert b"secret" not in exchange.body


async def test_an_upstream_that_is_full_is_passed_on_with_its_wait() -> None:
    async def refuse(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 429 Slow\r\nretry-after: 9\r\ncontent-length: 0\r\n\r\n")

    async with serving(refuse) as (app, _):
        exchange = await post(app)
    assert (exchange.status, exchange.headers[b"retry-after"]) == (429, b"9")


async def test_the_upstream_is_closed_when_the_client_disconnects() -> None:
    async def answer(visit: Visit) -> None:
        await visit.start()
        await visit.chunk(WHOLE[0] + WHOLE[1])

    async with serving(answer) as (app, service), streaming(app) as exchange:
        await exchange.until_count(1)
        exchange.disconnect()
        exchange.refusal = OSError("the client has left")
        await asyncio.wait_for(service.visits[0].is_closed.wait(), HANG_SECONDS)


MALFORMED = [
    b"data: {\n\n",
    b"data: 5\n\n",
    b"data: {}\n\n",
    b'data: {"choices": []}\n\n',
    b'data: {"choices": [{"delta": 5}]}\n\n',
    b'data: {"response.created": {}}\n\n',
    b'data: {"usage": {"input_tokens": "x"}, "choices": [{"delta": {}}]}\n\n',
    b"data: " + b"[" * 100_000 + b"\n\n",
]


async def test_a_malformed_chunk_is_skipped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "example_app")
    parts = (WHOLE[0], WHOLE[1], *MALFORMED, *WHOLE[2:])
    async with serving(answering(*parts)) as (app, _):
        assert text_of(chunks_of(await post(app))) == "Hello, you"
    messages = [record.getMessage() for record in caplog.records if "malformed" in record.msg]
    assert len(messages) == len(MALFORMED)


async def test_the_text_is_wrapped_for_roo_code_by_a_transform() -> None:
    async with serving(answering(*WHOLE)) as (app, _):
        wrapped = chunks_of(await post(app, path="/roocode/v1/chat/completions"))
    assert text_of(wrapped) == (
        "<attempt_completion>\n<result>\nHello, you\n</result>\n</attempt_completion>"
    )
    assert wrapped[-2]["choices"][0]["finish_reason"] == "stop"
    assert "usage" in wrapped[-1]


async def test_the_own_service_answers_from_the_corpus_and_counts_tokens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    async with serving() as (app, _):
        chunks = chunks_of(await post(app))
        assert "executes Python bytecode at a time" in text_of(chunks)
        refused = await post(app, messages=[{"role": "user", "content": " "}])
    assert refused.status == 400
    (record,) = stream_fields(caplog)
    assert (record["family"], record["tokens"]) == ("openai", chunks[-1]["usage"]["total_tokens"])
    assert record["models"] == ["qwen3-max"]


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"model": ""},
        {"model": "x" * 101},
    ],
)
async def test_a_request_that_is_not_allowed_is_refused(body: dict[str, Any]) -> None:
    async with serving() as (app, _):
        assert (await post(app, **body)).status in (400, 422)


async def test_parts_of_a_message_that_are_texts_are_joined() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "image_url"}]
    parts.append({"type": "text", "text": "an object?"})
    async with serving(answering(*WHOLE)) as (app, service):
        await post(app, messages=[{"role": "user", "content": parts}])
        assert service.visits[0].json()["messages"][0]["content"] == "What is an object?"


async def test_a_session_is_that_of_a_caller_and_a_first_question() -> None:
    sessions = {
        get_or_create_session([{"role": "user", "content": question}], caller)
        for question in ("a", "b")
        for caller in ("", "Bearer x")
    }
    assert len(sessions) == 4


async def test_the_sessions_of_a_process_are_bounded() -> None:
    sessions = MemorySessions()
    for number in range(10_001):
        await sessions.update_session(str(number), "p")
    assert await sessions.get_parent_id("0") is None
    assert await sessions.get_parent_id("1") == "p"
