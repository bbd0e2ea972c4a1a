"""The example app, run in process with its lifespan: what its routes stream and serve."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import example_app
from example_app.citations import remove_marks
from example_app.search_endpoints import MAX_DELAY_MS, MAX_QUERY_CHARACTERS, MAX_TOKENS
from tests.support.example_client import QUESTION, events_of, post

if TYPE_CHECKING:
    import httpx2 as httpx

pytestmark = pytest.mark.anyio


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
    text = "".join(data["content"] for _, data in events[:-1])
    assert remove_marks(text) == whole["answer"]
    assert events[-1][1]["sources"] == whole["citations"]


async def test_stream_search_sends_no_more_tokens_than_requested(
    client: httpx.AsyncClient,
) -> None:
    whole = events_of(await client.get("/stream/search", params={"query": QUESTION}))
    for max_tokens in (1, 20, len(whole) - 1, MAX_TOKENS):
        params = {"query": QUESTION, "max_tokens": str(max_tokens)}
        *chunks, (_, end) = events_of(await client.get("/stream/search", params=params))
        assert chunks == whole[:-1][:max_tokens]
        text = "".join(data["content"] for _, data in chunks)
        marked = dict.fromkeys(int(number) for number in re.findall(r"\[([0-9]+)\]", text))
        assert [source["number"] for source in end["sources"]] == list(marked)
    for max_tokens in (0, MAX_TOKENS + 1):
        params = {"query": QUESTION, "max_tokens": str(max_tokens)}
        assert (await client.get("/stream/search", params=params)).status_code == 422


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
