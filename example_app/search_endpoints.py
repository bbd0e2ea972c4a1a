"""The searches: `GET /stream/search` for an `EventSource`, and `POST /search` for other clients."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import Depends, Query, Request, Response
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field, StringConstraints
from sse_starlette import EventSourceResponse as SseStarletteResponse
from starlette.datastructures import Headers

from example_app.citations import MarkRemover, remove_marks
from example_app.search import Answer, KnowledgeBase, SearchIndex, split_tokens
from example_app.sse import Event, stream_events
from sse_middleware import current_stream, streaming

MAX_DELAY_MS: Final = 2000
MAX_QUERY_CHARACTERS: Final = 1000
MAX_TOKENS: Final = 1000

_EVENT_ID: Final = re.compile("([0-9a-f]{32})-[0-9]{1,9}")

QueryText = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUERY_CHARACTERS),
]
User = Annotated[str, StringConstraints(min_length=1, max_length=100)]


class SearchQuery(BaseModel):
    """The body of `POST /search`.

    Attributes:
        query: the question.
        kb_ids: the knowledge bases in which to search, `None` for all.
        user: the user of the client, which the log record of the stream contains.
    """

    query: QueryText
    kb_ids: Annotated[list[KnowledgeBase], Field(min_length=1, max_length=20)] | None = None
    user: User | None = None


class Searcher:
    """The index, and the pause between two pieces of an answer."""

    def __init__(self, index: SearchIndex, delay_seconds: float) -> None:
        """Store the arguments."""
        self._index = index
        self._delay_seconds = delay_seconds

    async def answer(self, query: str, kb_ids: list[KnowledgeBase] | None = None) -> Answer:
        """Answer in a thread: a query would block the event loop for a millisecond or two."""
        return await asyncio.to_thread(self._index.answer, query, kb_ids)

    async def pieces(self, answer: Answer) -> AsyncIterator[str]:
        """Yield the answer word by word, at the requested pace."""
        for piece in split_tokens(answer.text):
            current_stream().add_tokens(1)  # for heartbeats, `complete` and the log
            yield piece
            await asyncio.sleep(self._delay_seconds)


async def searcher_of(
    request: Request,
    delay_ms: Annotated[
        int | None,
        Query(ge=0, le=MAX_DELAY_MS, description="Pause between two pieces, milliseconds."),
    ] = None,
) -> Searcher:
    """Return the index of the app with the pause of the request, or else with that of the app."""
    state = request.app.state
    return Searcher(state.index, state.token_delay_seconds if delay_ms is None else delay_ms / 1000)


SearcherOfRequest = Annotated[Searcher, Depends(searcher_of)]


@streaming
async def stream_search(
    query: QueryText,
    searcher: SearcherOfRequest,
    user_id: Annotated[User | None, Query(description="Contained in the log record.")] = None,
    max_tokens: Annotated[int, Query(ge=1, le=MAX_TOKENS)] = MAX_TOKENS,
) -> Response:
    """Answer as events for an `EventSource`: `content_chunk` per word, then `complete`."""
    if user_id is not None:
        current_stream().annotate(user=user_id)
    return await create_sse_response(query, max_tokens=max_tokens, searcher=searcher)


async def create_sse_response(query: str, *, max_tokens: int, searcher: Searcher) -> Response:
    """Return the event stream that answers a query; the middleware gives it its trace id."""
    answer = (await searcher.answer(query)).shortened(max_tokens)

    async def events() -> AsyncIterator[Event]:
        async for piece in searcher.pieces(answer):
            yield "content_chunk", {"content": piece}
        sources = [asdict(citation) for citation in answer.citations]
        end = {"sources": sources, "confidence_score": answer.confidence_score}
        yield "complete", end

    return EventSourceResponse(stream_events(events()))


def session_of(scope: MutableMapping[str, Any]) -> str:
    """Return the session of a search: a new one, or that in the event id of a client that resumes.

    An event id is the session, which cannot be guessed, and the number of the event.
    """
    found = _EVENT_ID.fullmatch(Headers(scope=scope).get("last-event-id", ""))
    session = found[1] if found else secrets.token_hex(16)
    return str(scope.setdefault("example_app.session", session))


async def search(
    request: Request,
    body: SearchQuery,
    searcher: SearcherOfRequest,
) -> Response | dict[str, Any]:
    """Answer as events if the client accepts them, else as one JSON body."""
    if body.user is not None:
        current_stream().annotate(user=body.user)
    answer = await searcher.answer(body.query, body.kb_ids)
    accepted = ",".join(request.headers.getlist("accept")).lower()
    if "text/event-stream" in accepted:
        events = stream_search_results(answer, searcher)
        return SseStarletteResponse(stream_events(events, session_of(request.scope)))
    return {
        "answer": remove_marks(answer.text),
        "citations": [asdict(citation) for citation in answer.citations],
        "confidence_score": answer.confidence_score,
        "results": [asdict(hit) for hit in answer.results],
    }


async def stream_search_results(answer: Answer, searcher: Searcher) -> AsyncIterator[Event]:
    """Yield an answer as events: `token` per word, `citation` per source, then `done`.

    The tokens have no citation marks: the citations follow in the order of their numbers.
    """
    remover = MarkRemover()
    async for piece in searcher.pieces(answer):
        if text := remover.feed(piece):
            yield "token", {"text": text}
    if text := remover.flush():
        yield "token", {"text": text}
    for citation in answer.citations:
        yield "citation", asdict(citation)
    yield "done", {"confidence_score": answer.confidence_score}
