"""The example app, run in process with its lifespan: what its routes stream and serve."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest
from asgi_lifespan import LifespanManager

import example_app
from example_app.app import MAX_DELAY_MS, MAX_QUERY_CHARACTERS, create_app
from example_app.search import NOTHING_FOUND
from sse_middleware import EventParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

QUESTION = "What is the global interpreter lock?"
# The events that the middleware may add to a stream.
CONTROL_EVENTS = {"start", "heartbeat", "error", "reset"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with (
        LifespanManager(create_app(token_delay_seconds=0)) as manager,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=manager.app),
            base_url="http://example.test",
        ) as client,
    ):
        yield client


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """List the app's own events of a stream: name and decoded data."""
    events = []
    for block in re.split(r"\r?\n\r?\n", response.text):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":")
        )
        if "data" in fields and fields.get("event") not in CONTROL_EVENTS:
            events.append((fields.get("event", "message"), json.loads(fields["data"])))
    return events


async def post(client: httpx.AsyncClient, query: object, accept: str) -> httpx.Response:
    return await client.post("/search", json={"query": query}, headers={"Accept": accept})


@pytest.mark.parametrize(
    "accept",
    ["text/event-stream", "Text/Event-Stream", "application/json, text/event-stream;q=0.9"],
)
async def test_search_with_sse_accept_header_returns_event_stream(
    client: httpx.AsyncClient,
    accept: str,
) -> None:
    response = await post(client, QUESTION, accept)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_sse_events_streamed_in_correct_order(client: httpx.AsyncClient) -> None:
    names = [name for name, _ in events_of(await post(client, QUESTION, "text/event-stream"))]
    assert re.fullmatch(r"(token )+(citation )+done ", "".join(f"{name} " for name in names))


async def test_sse_token_events_contain_incremental_text(client: httpx.AsyncClient) -> None:
    events = events_of(await post(client, QUESTION, "text/event-stream"))
    pieces = [data["text"] for name, data in events if name == "token"]
    whole = (await post(client, QUESTION, "application/json")).json()["answer"]
    assert len(pieces) > 20
    assert all(len(piece.split()) == 1 for piece in pieces)
    assert "".join(pieces) == whole


async def test_sse_citation_events_contain_metadata(client: httpx.AsyncClient) -> None:
    events = events_of(await post(client, QUESTION, "text/event-stream"))
    text = "".join(data["text"] for name, data in events if name == "token")
    citations = [data for name, data in events if name == "citation"]
    assert [f"[{citation['number']}]" for citation in citations] == list(
        dict.fromkeys(re.findall(r"\[[0-9]+\]", text)),
    )
    for citation in citations:
        assert citation["document_name"].startswith("Python ")
        assert citation["excerpt"]
        assert citation["url"].startswith("https://docs.python.org/3/")


async def test_sse_reconnection_resumes_from_last_event(client: httpx.AsyncClient) -> None:
    whole = EventParser().feed((await post(client, QUESTION, "text/event-stream")).content)
    for at in (1, len(whole) // 2, len(whole) - 1):
        response = await client.post(
            "/search",
            json={"query": QUESTION},
            headers={"Accept": "text/event-stream", "Last-Event-ID": whole[at - 1].id or ""},
        )
        assert response.status_code == 200
        assert EventParser().feed(response.content) == whole[at:]
    last = {"Accept": "text/event-stream", "Last-Event-ID": whole[-1].id or ""}
    response = await client.post("/search", json={"query": QUESTION}, headers=last)
    assert response.status_code == 204


async def test_sse_reconnection_without_the_stream_starts_over(client: httpx.AsyncClient) -> None:
    whole = events_of(await post(client, QUESTION, "text/event-stream"))
    for held in ("0" * 32 + "-5", "5", "x", "\xff"):
        headers = [(b"Accept", b"text/event-stream"), (b"Last-Event-ID", held.encode("latin-1"))]
        response = await client.post("/search", json={"query": QUESTION}, headers=headers)
        assert events_of(response) == whole


async def test_sse_done_event_carries_the_confidence(client: httpx.AsyncClient) -> None:
    name, data = events_of(await post(client, QUESTION, "text/event-stream"))[-1]
    assert name == "done"
    assert 0 < data["confidence_score"] <= 1


@pytest.mark.parametrize("accept", ["application/json", "*/*"])
async def test_search_without_sse_header_returns_non_streaming(
    client: httpx.AsyncClient,
    accept: str,
) -> None:
    response = await post(client, QUESTION, accept)
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert set(body) == {"answer", "citations", "confidence_score", "results"}
    assert "only one thread executes Python bytecode at a time" in body["answer"]
    assert set(body["citations"][0]) == {"number", "document_name", "excerpt", "url"}
    assert set(body["results"][0]) == {"document_name", "section", "url", "score", "excerpt"}


async def test_an_unanswerable_question_streams_one_honest_sentence(
    client: httpx.AsyncClient,
) -> None:
    events = events_of(await post(client, "xyzzy plugh", "text/event-stream"))
    text = "".join(data["text"] for name, data in events if name == "token")
    assert text == NOTHING_FOUND
    assert events[-1] == ("done", {"confidence_score": 0.0})
    assert "citation" not in dict(events)


@pytest.mark.parametrize(
    "query",
    ["", " \t ", "x" * (MAX_QUERY_CHARACTERS + 1), None, 5, "\ud800"],
    ids=["empty", "blank", "too long", "null", "a number", "a lone surrogate"],
)
async def test_search_refuses_an_invalid_query_with_422(
    client: httpx.AsyncClient,
    query: object,
) -> None:
    # Written by hand, since httpx would not send the lone surrogate escaped.
    response = await client.post(
        "/search",
        content=json.dumps({"query": query}),
        headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
    )
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "query"]


async def test_a_query_of_the_greatest_length_is_answered(client: httpx.AsyncClient) -> None:
    query = "list " * (MAX_QUERY_CHARACTERS // 5 - 1) + "tuple"
    assert len(query) == MAX_QUERY_CHARACTERS
    assert (await post(client, query, "application/json")).status_code == 200


async def test_stream_search_sends_content_chunks_and_then_its_own_complete(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get("/stream/search", params={"query": QUESTION})
    events = events_of(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [name for name, _ in events[:-1]] == ["content_chunk"] * (len(events) - 1)
    assert events[-1][0] == "complete"
    assert set(events[-1][1]) == {"sources", "confidence_score"}
    assert set(events[-1][1]["sources"][0]) == {"number", "document_name", "excerpt", "url"}


async def test_stream_search_chunks_concatenate_to_the_answer_of_search(
    client: httpx.AsyncClient,
) -> None:
    events = events_of(await client.get("/stream/search", params={"query": QUESTION}))
    whole = (await post(client, QUESTION, "application/json")).json()
    assert "".join(data["content"] for _, data in events[:-1]) == whole["answer"]
    assert events[-1][1]["sources"] == whole["citations"]


@pytest.mark.parametrize(
    "params",
    [{}, {"query": ""}, {"query": "  "}, {"query": "x" * (MAX_QUERY_CHARACTERS + 1)}],
    ids=["missing", "empty", "blank", "too long"],
)
async def test_stream_search_refuses_an_invalid_query_before_the_stream(
    client: httpx.AsyncClient,
    params: dict[str, str],
) -> None:
    response = await client.get("/stream/search", params=params)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("delay_ms", ["-1", str(MAX_DELAY_MS + 1), "soon"])
async def test_a_pause_out_of_bounds_is_refused_with_422(
    client: httpx.AsyncClient,
    delay_ms: str,
) -> None:
    params = {"query": QUESTION, "delay_ms": delay_ms}
    assert (await client.get("/stream/search", params=params)).status_code == 422


async def test_the_request_sets_the_pause_between_two_pieces(
    client: httpx.AsyncClient,
) -> None:
    response = await client.get(
        "/stream/search",
        params={"query": "xyzzy", "delay_ms": "10"},
    )
    pieces = len(events_of(response)) - 1
    assert response.elapsed.total_seconds() >= pieces * 0.01


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/strip.js", "text/javascript; charset=utf-8"),
        ("/favicon.svg", "image/svg+xml"),
    ],
)
async def test_the_page_is_served_with_its_types_and_may_load_nothing_foreign(
    client: httpx.AsyncClient,
    path: str,
    media_type: str,
) -> None:
    response = await client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.headers["content-security-policy"].startswith("default-src 'self'")
    assert "http" not in response.text.replace("http://www.w3.org/2000/svg", "").replace(
        "https?:", ""
    )


async def test_the_page_carries_the_ids_that_it_documents(client: httpx.AsyncClient) -> None:
    page = (await client.get("/")).text
    comment = page[: page.index("-->")]
    documented = set(re.findall(r"#([a-z][\w-]+)", comment))
    assert documented >= {"query", "ask", "stop", "answer", "sources", "state", "debug"}
    assert documented <= set(re.findall(r'\bid="([^"]+)"', page))


async def test_the_page_finds_the_client_of_the_library(client: httpx.AsyncClient) -> None:
    response = await client.get("/sse-client.js")
    assert response.headers["content-type"].startswith("text/javascript")
    assert "export class SSEClient" in response.text


async def test_a_stream_that_is_not_open_cannot_be_cut(client: httpx.AsyncClient) -> None:
    response = await client.post("/cut/0123456789abcdef")
    assert response.status_code == 404
    assert response.json() == {"detail": "nothing is being sent of that stream"}
    assert (await client.get("/cut/0123456789abcdef")).status_code == 404


def test_the_page_inserts_data_of_the_server_as_text_only() -> None:
    files = (Path(example_app.__file__).parent / "static").glob("*.js")
    script = "".join(path.read_text(encoding="utf-8") for path in files)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", script)
