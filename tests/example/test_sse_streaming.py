"""`POST /search`: tokens, citations and the confidence as events, or one JSON body."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, get_args

import pytest

from example_app.search import NOTHING_FOUND, KnowledgeBase
from sse_middleware import EventParser
from tests.support.example_client import QUESTION, events_of, post
from tests.support.log_records import stream_fields

if TYPE_CHECKING:
    import httpx2 as httpx

pytestmark = pytest.mark.anyio


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
    citations = [data for name, data in events if name == "citation"]
    assert [citation["number"] for citation in citations] == list(range(1, len(citations) + 1))
    assert citations
    for citation in citations:
        assert citation["document_name"].startswith("Python ")
        assert citation["excerpt"]
        assert citation["url"].startswith("https://docs.python.org/3/")


async def test_the_text_has_no_citation_marks(client: httpx.AsyncClient) -> None:
    marked = events_of(await client.get("/stream/search", params={"query": QUESTION}))
    with_marks = "".join(data["content"] for name, data in marked if name == "content_chunk")
    events = events_of(await post(client, QUESTION, "text/event-stream"))
    text = "".join(data["text"] for name, data in events if name == "token")
    assert re.search(r"\[[0-9]+\]", with_marks)
    assert text == re.sub(r"\s*\[[0-9]+\]", "", with_marks)
    assert "  " not in text


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


async def test_the_confidence_is_a_number_from_0_to_100(client: httpx.AsyncClient) -> None:
    name, data = events_of(await post(client, QUESTION, "text/event-stream"))[-1]
    assert name == "done"
    assert isinstance(data["confidence_score"], int)
    assert 25 <= data["confidence_score"] <= 100
    body = (await post(client, QUESTION, "application/json")).json()
    assert body["confidence_score"] == data["confidence_score"]


@pytest.mark.parametrize("kb_id", get_args(KnowledgeBase))
async def test_a_search_in_a_knowledge_base_finds_only_its_documents(
    client: httpx.AsyncClient, kb_id: str
) -> None:
    title = {"faq": "FAQ", "howto": "HOWTO", "reference": "Language Reference"}
    begin = f"Python {title.get(kb_id, kb_id.capitalize())}"
    query, body = "What is a class?", {"kb_ids": [kb_id]}
    found = (await post(client, query, "application/json", **body)).json()
    assert found["results"]
    assert all(hit["document_name"].startswith(begin) for hit in found["results"])
    events = events_of(await post(client, query, "text/event-stream", **body))
    citations = [data for name, data in events if name == "citation"]
    assert citations == found["citations"]


async def test_a_search_without_knowledge_bases_is_in_all_of_them(
    client: httpx.AsyncClient,
) -> None:
    whole = (await post(client, QUESTION, "application/json")).json()
    every = {"kb_ids": list(get_args(KnowledgeBase))}
    assert (await post(client, QUESTION, "application/json", **every)).json() == whole
    for kb_ids in ([], ["x"], "faq"):
        response = await post(client, QUESTION, "text/event-stream", kb_ids=kb_ids)
        assert response.status_code == 422
        assert response.json()["detail"][0]["loc"][:2] == ["body", "kb_ids"]


async def test_the_user_is_in_the_log_record(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sse_middleware.stream")
    await post(client, QUESTION, "text/event-stream", user="ann")
    await client.get("/stream/search", params={"query": QUESTION, "user_id": "bob"})
    await post(client, QUESTION, "text/event-stream")
    users = [fields["annotations"].get("user") for fields in stream_fields(caplog)]
    assert users == ["ann", "bob", None]
    for user in ("", 101 * "x"):
        assert (await post(client, QUESTION, "text/event-stream", user=user)).status_code == 422


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
    assert events[-1] == ("done", {"confidence_score": 0})
    assert "citation" not in dict(events)
