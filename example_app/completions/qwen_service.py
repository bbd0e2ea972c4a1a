"""A service with the dialect of Qwen's chat: it answers from the corpus, and needs no network.

Its first event has the id under which the conversation continues, as `parent_id`; each further one
has a piece of the answer and the tokens so far, and the last one the status `finished`.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from example_app.search import SearchIndex, split_tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request


def create_qwen_service(index: SearchIndex, *, token_delay_seconds: float) -> Starlette:
    """Build the service.

    Args:
        index: the index of the corpus.
        token_delay_seconds: the pause between two pieces of an answer.
    """

    async def completions(request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        question = body["messages"][-1]["content"]
        if not question.strip():
            return JSONResponse({"code": "bad_request", "message": "no question"}, 400)
        answer = await asyncio.to_thread(index.answer, question)
        events = _events(answer.text, question, body, token_delay_seconds)
        return StreamingResponse(events, media_type="text/event-stream")

    return Starlette(routes=[Route("/api/v2/chat/completions", completions, methods=["POST"])])


async def _events(
    answer: str, question: str, body: dict[str, Any], pause: float
) -> AsyncIterator[str]:
    ids = {"chat_id": body["chat_id"], "response_id": str(uuid.uuid4())}
    yield _event({"response.created": {**ids, "parent_id": str(uuid.uuid4())}})
    usage = {"input_tokens": len(split_tokens(question)), "output_tokens": 0}
    for piece in split_tokens(answer):
        usage["output_tokens"] += 1
        yield _event(_delta(content=piece, status="typing", phase="answer") | {"usage": usage})
        await asyncio.sleep(pause)
    yield _event(_delta(content="", status="finished", phase="answer") | {"usage": usage})


def _delta(**delta: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"role": "assistant", **delta}}]}


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
