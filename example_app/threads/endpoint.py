"""The endpoint: the events of an answer, and its turns.

The cache is the mark's: an equal request follows the kept stream of another one.
"""

import json
import logging
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated, Any, Final

import httpx2
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, StringConstraints

from example_app.completions.endpoint import create_qwen_client
from example_app.completions.sessions import create_sessions, shared_redis
from example_app.search import SearchIndex
from example_app.threads.memory import ProcessMemory, RedisMemory, ThreadMemory, Turn
from example_app.threads.route_and_call import Router
from sse_middleware import EndInfo, Event, Mark, current_stream, format_sse_event, streaming
from sse_middleware.sources import started

logger = logging.getLogger("example_app.threads")

PATHS: Final = "/threads/*"
CACHE_SECONDS: Final = 600

Content = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000)]


class MessageRequest(BaseModel):
    """The message of a user."""

    content: Content


class Threads:
    """Answer messages, and remember the turns.

    Args:
        router: selects the provider.
        memory: keeps the turns.
    """

    def __init__(self, router: Router, memory: ThreadMemory) -> None:
        """Store the parts."""
        self._router = router
        self.memory = memory

    async def answer(self, thread_id: str, content: str) -> AsyncIterator[bytes]:
        """Return the events of an answer; the first one is there already."""
        rc = self._router.route_and_call(thread_id, content)
        return self._events(thread_id, content, await started(rc["result"]["stream"]))

    async def _events(
        self, thread_id: str, content: str, stream: AsyncIterator[str]
    ) -> AsyncIterator[bytes]:
        parts: list[str] = []
        async for chunk in stream:
            parts.append(chunk)
            yield sse_event({"delta": chunk}, event="delta")
        # A stream that fails or is cut comes to no turn.
        await self.memory.add_turn(thread_id, Turn("user", content))
        await self.memory.add_turn(thread_id, Turn("assistant", "".join(parts)))
        yield sse_event({"type": "done"}, event="done")


def thread_mark() -> Mark:
    """Return the mark of the endpoint: its cache, the order of its events, and its record."""
    return streaming(
        name=PATHS,
        attach="kept",
        cache_ttl=CACHE_SECONDS,
        order=("delta", "done"),
        on_end=log_turn,
    )


def log_turn(info: EndInfo, events: list[Event]) -> None:
    """Log one turn after its end, without its text."""
    logger.info(
        "turn of thread %s: %s, %d pieces, %d tokens in, %d out",
        info.annotations.get("thread_id"),
        info.reason,
        sum(event.event == "delta" for event in events),
        info.usage.input_tokens,
        info.usage.output_tokens,
    )


def sse_event(data: dict[str, Any], event: str) -> bytes:
    """Return an event with JSON data."""
    return format_sse_event(json.dumps(data, ensure_ascii=False), event=event)


def create_threads(
    index: SearchIndex, *, token_delay_seconds: float, client: httpx2.AsyncClient | None = None
) -> Threads:
    """Return the object that answers all messages, with the arguments of `create_handler`."""
    qwen = create_qwen_client(index, token_delay_seconds=token_delay_seconds, client=client)
    redis = shared_redis()
    memory = ProcessMemory() if redis is None else RedisMemory(redis)
    return Threads(Router(qwen, create_sessions(), index), memory)


def add_threads(app: FastAPI) -> None:
    """Add the endpoints."""
    path = "/threads/{thread_id}/messages"
    app.post(path, response_model=None)(post_message)
    app.get(path)(get_messages)


async def post_message(thread_id: str, body: MessageRequest, request: Request) -> Response:
    """Answer a message of a thread."""
    current_stream().annotate(thread_id=thread_id[:100])
    threads: Threads = request.app.state.threads
    events = await threads.answer(thread_id, body.content)
    return StreamingResponse(events, media_type="text/event-stream")


async def get_messages(thread_id: str, request: Request) -> list[dict[str, str]]:
    """Return the turns of a thread."""
    threads: Threads = request.app.state.threads
    return [asdict(turn) for turn in await threads.memory.turns(thread_id)]
