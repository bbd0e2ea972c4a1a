"""`/v1/responses`: streams, the background, polling, and stops; the upstream is a real socket."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from asgi_lifespan import LifespanManager

from example_app.app import create_app
from example_app.responses.endpoint import owner_of
from example_app.responses.records import Outcome, ProcessRecords, Record
from example_app.responses.run import new_response
from sse_middleware import EventParser
from tests.support.asgi import Exchange, handle, http_scope, running
from tests.support.upstreams import Answer, Upstream, Visit, upstream_service
from tests.support.waiting import HANG_SECONDS, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
QUESTION = "What is the global interpreter lock?"
KINDS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]
IN_BACKGROUND = [KINDS[0], "response.queued", *KINDS[1:]]


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[FastAPI, Upstream]]:
    """Run the example with an upstream that answers so."""
    async with (
        upstream_service(answer) as service,
        httpx2.AsyncClient(base_url=service.url, timeout=HANG_SECONDS) as client,
    ):
        app = create_app(token_delay_seconds=0, qwen=client)
        async with LifespanManager(app):
            yield app, service


def headers_of(user: str) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", b"application/json"), (b"accept", b"application/json")]
    return [*headers, (b"authorization", user.encode())] if user else headers


async def request(
    app: FastAPI, method: str, path: str = "", *, user: str = "", query: str = "", **body: Any
) -> Exchange:
    data = json.dumps(body).encode() if body else b""
    return await handle(
        app,
        method=method,
        path=PATH + path,
        headers=headers_of(user),
        body=data,
        query_string=query.encode(),
    )


async def create(app: FastAPI, **body: Any) -> Exchange:
    return await request(app, "POST", **{"input": QUESTION, **body})


@asynccontextmanager
async def opened(app: FastAPI, **body: Any) -> AsyncIterator[Exchange]:
    """Create a response, and leave its request open."""
    data = json.dumps({"input": QUESTION, **body}).encode()
    scope = http_scope(method="POST", path=PATH, headers=headers_of(""))
    async with running(app, Exchange(scope, body=data)) as exchange:
        yield exchange


def leave(exchange: Exchange) -> None:
    exchange.disconnect()
    exchange.refusal = OSError("the client has left")


async def get(app: FastAPI, response: dict[str, Any], **more: Any) -> dict[str, Any]:
    exchange = await request(app, "GET", f"/{response['id']}", **more)
    assert exchange.status == 200, exchange.body
    found: dict[str, Any] = json.loads(exchange.body)
    return found


async def end_of(app: FastAPI, response: dict[str, Any]) -> dict[str, Any]:
    """Poll a response until it has ended."""
    for _ in range(int(HANG_SECONDS / 0.02)):
        if (found := await get(app, response))["status"] != "in_progress":
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"{response['id']} does not end")


def events_of(data: bytes) -> list[dict[str, Any]]:
    events = EventParser().feed(data)
    found = [json.loads(event.data) for event in events]
    assert [event.event for event in events] == [one["type"] for one in found]
    return found


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def text_of(response: dict[str, Any]) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


def delta(content: str, status: str = "typing") -> bytes:
    usage = {"input_tokens": 4, "output_tokens": 2}
    choices = [{"delta": {"content": content, "status": status}}]
    return b"data: %b\n\n" % json.dumps({"choices": choices, "usage": usage}).encode()


async def begin(visit: Visit) -> None:
    await visit.start()
    created = {"response.created": {"parent_id": f"p{id(visit)}"}}
    await visit.chunk(b"data: %b\n\n" % json.dumps(created).encode())
    await visit.chunk(delta("Hello"))


async def finish(visit: Visit) -> None:
    await visit.chunk(delta(", you"))
    await visit.chunk(delta("", "finished"))
    await visit.end()


async def hello(visit: Visit) -> None:
    await begin(visit)
    await finish(visit)


async def refuse(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 503 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")


async def cut(visit: Visit) -> None:
    await begin(visit)
    visit.cut()


class Held:
    """An upstream that sends its second half when it is released."""

    def __init__(self) -> None:
        self.release = asyncio.Event()

    async def __call__(self, visit: Visit) -> None:
        await begin(visit)
        await self.release.wait()
        await finish(visit)


async def test_a_stream_has_the_events_of_a_response_with_their_numbers() -> None:
    async with serving(hello) as (app, _):
        exchange = await create(app, stream=True)
        events = events_of(exchange.body)
        assert kinds_of(events) == KINDS
        assert [event["sequence_number"] for event in events] == list(range(len(KINDS)))
        response = events[-1]["response"]
        assert text_of(response) == "Hello, you"
        assert response["status"] == "completed"
        assert response["model"] == "qwen3-max"
        assert response["usage"]["total_tokens"] == 6
        assert await get(app, response) == response


async def test_a_response_without_a_stream_is_an_object() -> None:
    async with serving(hello) as (app, service):
        messages = [{"role": "user", "content": [{"type": "input_text", "text": "Hi?"}]}]
        response = json.loads((await create(app, input=messages, model="m")).body)
        assert (response["object"], response["status"]) == ("response", "completed")
        assert (response["model"], text_of(response)) == ("m", "Hello, you")
        assert service.visits[0].json()["messages"][0]["content"] == "Hi?"
        assert await get(app, response) == response
        unstored = json.loads((await create(app, store=False)).body)
        assert (await request(app, "GET", f"/{unstored['id']}")).status == 404


async def test_a_response_in_the_background_is_polled() -> None:
    held = Held()
    async with serving(held) as (app, service):
        response = json.loads((await create(app, background=True)).body)
        assert (response["status"], response["background"]) == ("queued", True)
        await until(lambda: bool(service.visits), "the response does not run")
        assert (await get(app, response))["status"] == "in_progress"
        held.release.set()
        end = await end_of(app, response)
        assert (end["status"], text_of(end)) == ("completed", "Hello, you")
        assert end["id"] == response["id"]


async def test_a_stream_in_the_background_continues_without_its_client() -> None:
    held = Held()
    async with serving(held) as (app, service):
        async with opened(app, background=True, stream=True) as exchange:
            await exchange.until("response.output_text.delta")
            leave(exchange)
            before = events_of(exchange.body)
            path, number = f"/{before[0]['response']['id']}", before[-1]["sequence_number"]
            query = f"stream=true&starting_after={number}"
            rest = asyncio.ensure_future(request(app, "GET", path, query=query))
            held.release.set()
            after = events_of((await rest).body)
        assert kinds_of(before + after) == IN_BACKGROUND
        assert text_of(after[-1]["response"]) == "Hello, you"
        assert len(service.visits) == 1
        whole = await request(app, "GET", path, query="stream=true")
        assert events_of(whole.body) == before + after


async def test_a_stream_in_the_foreground_ends_with_its_client() -> None:
    async with serving(Held()) as (app, service), opened(app, stream=True) as exchange:
        await exchange.until("response.output_text.delta")
        leave(exchange)
        await asyncio.wait_for(service.visits[0].is_closed.wait(), HANG_SECONDS)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_cancel_stops_the_upstream_and_is_the_outcome(stream: bool) -> None:  # noqa: FBT001
    async with serving(Held()) as (app, service):
        async with opened(app, background=True, stream=stream) as exchange:
            await until(lambda: bool(service.visits and exchange.body), "no response")
            data = exchange.body
            response = events_of(data)[0]["response"] if stream else json.loads(data)
            path = f"/{response['id']}"
            for _ in range(2):
                cancelled = json.loads((await request(app, "POST", f"{path}/cancel")).body)
                assert (cancelled["id"], cancelled["status"]) == (response["id"], "cancelled")
            await asyncio.wait_for(service.visits[0].is_closed.wait(), HANG_SECONDS)
        assert (await get(app, response))["status"] == "cancelled"
        again = await request(app, "GET", path, query="stream=true&starting_after=99")
        assert (again.status, json.loads(again.body)["error"]["code"]) == (410, "stream_ended")


async def test_a_cancel_after_the_end_returns_the_whole_response() -> None:
    async with serving(hello) as (app, _):
        exchange = await create(app, background=True, stream=True)
        response = events_of(exchange.body)[-1]["response"]
        again = await request(app, "POST", f"/{response['id']}/cancel")
        assert json.loads(again.body) == response


async def test_a_failure_before_the_answer_is_a_status_without_a_stream() -> None:
    async with serving(refuse) as (app, _):
        exchange = await create(app)
        assert (exchange.status, json.loads(exchange.body)["error"]["type"]) == (
            503,
            "upstream_error",
        )


@pytest.mark.parametrize("answer", [refuse, cut])
async def test_a_stream_whose_upstream_fails_ends_with_a_failed_response(answer: Answer) -> None:
    async with serving(answer) as (app, _):
        events = events_of((await create(app, stream=True)).body)
        assert events[-1]["type"] == "response.failed"
        assert events[-1]["response"]["error"]["code"] == "server_error"
        queued = json.loads((await create(app, background=True)).body)
        assert (await end_of(app, queued))["status"] == "failed"


async def test_a_response_belongs_to_the_key_that_has_created_it() -> None:
    async with serving(hello) as (app, _):
        exchange = await create(app, user="Bearer ann", background=True, stream=True)
        response = events_of(exchange.body)[-1]["response"]
        path = f"/{response['id']}"
        assert await get(app, response, user="Bearer ann") == response
        for user in ("Bearer bob", ""):
            for method, suffix, query in (
                ("GET", "", ""),
                ("GET", "", "stream=true"),
                ("POST", "/cancel", ""),
                ("DELETE", "", ""),
            ):
                exchange = await request(app, method, path + suffix, user=user, query=query)
                assert (exchange.status, json.loads(exchange.body)["error"]["code"]) == (
                    404,
                    "not_found",
                )
            found = await request(app, "GET", f"{path}/live", user=user)
            assert (found.status, found.body) == (204, b"")


async def test_a_response_continues_after_another_one() -> None:
    async with serving(hello) as (app, service):
        first = json.loads((await create(app)).body)
        await create(app, previous_response_id=first["id"])
        assert service.visits[0].json()["parent_id"] is None
        assert service.visits[1].json()["parent_id"] == f"p{id(service.visits[0])}"
        for unknown, user in (("resp_0", ""), (first["id"], "Bearer bob")):
            exchange = await create(app, previous_response_id=unknown, user=user)
            assert exchange.status == 400
            assert json.loads(exchange.body)["error"]["code"] == "previous_response_not_found"


async def test_a_deleted_response_is_stopped_and_unknown() -> None:
    async with serving(Held()) as (app, service):
        response = json.loads((await create(app, background=True)).body)
        await until(lambda: bool(service.visits), "the response does not run")
        exchange = await request(app, "DELETE", f"/{response['id']}")
        assert json.loads(exchange.body)["deleted"] is True
        await asyncio.wait_for(service.visits[0].is_closed.wait(), HANG_SECONDS)
        assert (await request(app, "GET", f"/{response['id']}")).status == 404


async def test_a_response_whose_events_are_gone_is_streamed_as_its_last_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSE_REPLAY_TTL", "0")
    async with serving(hello) as (app, _):
        last = events_of((await create(app, background=True, stream=True)).body)[-1]
        path = f"/{last['response']['id']}"
        number = last["sequence_number"]
        for more, expected in (
            ("", [last]),
            ("&starting_after=3", [last]),
            (f"&starting_after={number}", []),
        ):
            exchange = await request(app, "GET", path, query=f"stream=true{more}")
            assert exchange.status == 200
            assert exchange.headers[b"content-type"].startswith(b"text/event-stream")
            assert events_of(exchange.body) == expected


async def test_a_response_that_no_worker_produces_any_more_has_failed() -> None:
    async with serving(hello) as (app, _):
        owner = owner_of(http_scope(path=PATH))
        for age, status in ((0, "in_progress"), (60, "failed")):
            begun = int(time.time()) - age
            response = new_response(model="m", background=True, created_at=begun)
            await app.state.responses.records.add(Record(owner, response))
            assert (await get(app, response))["status"] == status


async def test_a_running_response_that_is_old_is_in_progress() -> None:
    held = Held()
    async with serving(held) as (app, service):
        response = json.loads((await create(app, background=True)).body)
        await until(lambda: bool(service.visits), "the response does not run")
        records = app.state.responses.records
        record = await records.get(response["id"])
        old = {**record.response, "created_at": record.response["created_at"] - 60}
        await records.add(Record(record.owner, old))
        assert (await get(app, response))["status"] == "in_progress"
        held.release.set()


async def test_requests_that_cannot_be_answered_are_refused() -> None:
    async with serving(hello) as (app, _):
        whole = json.loads((await create(app)).body)
        system = [{"role": "system", "content": "x"}]
        for exchange, code in (
            (await create(app, background=True, store=False), "invalid_background"),
            (await create(app, input=system), "invalid_input"),
            (await request(app, "POST", f"/{whole['id']}/cancel"), "not_background"),
        ):
            assert (exchange.status, json.loads(exchange.body)["error"]["code"]) == (400, code)
        assert (await create(app, input=[])).status == 422
        assert (await request(app, "POST", "/resp_0/cancel")).status == 404


async def test_a_shutdown_waits_for_responses_in_the_background() -> None:
    async def later(visit: Visit) -> None:
        await begin(visit)
        await asyncio.sleep(0.2)
        await finish(visit)

    async with serving(later) as (app, service):
        response = json.loads((await create(app, background=True)).body)
        await until(lambda: bool(service.visits), "the response does not run")
    record = await app.state.responses.records.get(response["id"])
    assert record.outcome.response["status"] == "completed"


async def test_the_first_outcome_counts_and_the_oldest_record_is_dropped() -> None:
    records, ids = ProcessRecords(), list[str]()
    for _ in range(10_001):
        response = new_response(model="m")
        ids.append(response["id"])
        await records.add(Record("", response))
    assert await records.get(ids[0]) is None
    assert [await records.finish(ids[-1], Outcome({"n": n})) for n in (1, 2)] == [True, False]
    found = await records.get(ids[-1])
    assert found is not None
    assert found.outcome == Outcome({"n": 1})
    assert not await records.finish("resp_0", Outcome({}))
