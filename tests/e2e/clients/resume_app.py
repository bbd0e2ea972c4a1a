"""Answers of products in streams with names, each with the endpoint by which clients continue.

The query of a request sets the pace of its answer: `pause` seconds after each chunk, `hold`, the
number of chunks after which it waits for a `POST /release/{name}`, and `fails`, after which it
fails. `/record/{name}` returns the runs of this worker.

`LEASE_SECONDS`, if it is set, is the time after which the streams of a dead worker are lost.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, current_stream, resume_endpoint, streaming
from sse_middleware.stores.redis import RedisStore
from tests.support import answers
from tests.support.answers import json_event

WORDS = [f"word{number} " for number in range(30)]
"""The deltas of each answer to an SDK."""
TEXT = "".join(WORDS)

runs: defaultdict[str, list[str]] = defaultdict(list)
"""How the runs of this worker are, by the name of the stream: running, finished or stopped."""
released: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)


def named(request: Request, name: str, chunks: Iterable[bytes]) -> Response:
    """Send chunks in a stream with a name."""
    current_stream().name(name)
    headers = {"x-vercel-ai-ui-message-stream": "v1"} if name.startswith("chat:") else None
    return StreamingResponse(
        _paced(request, name, chunks), media_type="text/event-stream", headers=headers
    )


async def _paced(request: Request, name: str, chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    query, run = request.query_params, len(runs[name])
    pause = float(query.get("pause", "0.01"))
    hold, fails = (int(query.get(name, "-1")) for name in ("hold", "fails"))
    runs[name].append("running")
    try:
        for number, chunk in enumerate(chunks):
            if number == hold:
                await released[name].wait()
            if number == fails:
                raise ValueError("swordfish")
            yield chunk
            await asyncio.sleep(pause)
    except BaseException:
        runs[name][run] = "stopped"
        raise
    runs[name][run] = "finished"


@streaming
async def answer(request: Request) -> Response:
    """Send `n` numbers, or a random answer in random chunks with `seed`."""
    name, query = request.path_params["name"], request.query_params
    chunks: Iterable[bytes] = answers.numbers(int(query.get("n", "30")))
    if seed := query.get("seed"):
        chunks = answers.random_chunks(seed, answers.random_answer(seed))
    return named(request, f"answer:{name}", chunks)


# The AI SDK


def ui_message(message: str) -> Iterator[bytes]:
    """Yield the stream of a UI message (https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol)."""
    yield json_event({"type": "start", "messageId": message})
    yield json_event({"type": "text-start", "id": "text"})
    for word in WORDS:
        yield json_event({"type": "text-delta", "id": "text", "delta": word})
    yield json_event({"type": "text-end", "id": "text"})
    yield json_event({"type": "finish"})
    yield b"data: [DONE]\n\n"


@streaming
async def chat(request: Request) -> Response:
    """Answer the last message of a chat."""
    body = await request.json()
    return named(request, f"chat:{body['id']}", ui_message(f"answer-{len(body['messages'])}"))


# The Responses API of OpenAI


def response_events(response: str) -> Iterator[bytes]:
    """Yield the events of a response (https://platform.openai.com/docs/api-reference)."""
    item = {"output_index": 0, "item_id": "msg_1", "content_index": 0}
    output = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
    }
    head: dict[str, Any] = {
        "id": response,
        "object": "response",
        "created_at": 1,
        "model": "gpt",
        "tools": [],
    }
    head |= {"output": [], "parallel_tool_calls": True, "tool_choice": "auto"}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**head, "status": "queued"}},
        {"type": "response.in_progress", "response": {**head, "status": "in_progress"}},
        *(
            {"type": "response.output_text.delta", **item, "delta": w, "logprobs": []}
            for w in WORDS
        ),
        {"type": "response.output_text.done", **item, "text": TEXT, "logprobs": []},
        {
            "type": "response.completed",
            "response": {**head, "status": "completed", "output": [output]},
        },
    ]
    for number, event in enumerate(events, FIRST_SEQUENCE_NUMBER):
        yield json_event({**event, "sequence_number": number}, event["type"])


FIRST_SEQUENCE_NUMBER = 0


@streaming
async def create_response(request: Request) -> Response:
    """Run in the background, and stream the events."""
    body = await request.json()
    assert body["background"]
    assert body["stream"]
    response = f"resp_{body['input']}"
    return named(request, f"response:{response}", response_events(response))


def completion_chunks() -> Iterator[bytes]:
    """Yield a chat completion (https://platform.openai.com/docs/api-reference/chat-streaming)."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt"}
    for word in WORDS:
        yield json_event({**head, "choices": [{"index": 0, "delta": {"content": word}}]})
    yield b"data: [DONE]\n\n"


@streaming
async def completion(request: Request) -> Response:
    """Complete a chat; the stream has the name of the model."""
    body = await request.json()
    return named(request, f"completion:{body['model']}", completion_chunks())


# AG-UI


def agent_events(thread: str, run: str) -> Iterator[bytes]:
    """Yield the events of a run (https://docs.ag-ui.com/concepts/events)."""
    ids, message = {"threadId": thread, "runId": run}, {"messageId": "m1"}
    yield json_event({"type": "RUN_STARTED", **ids})
    yield json_event({"type": "TEXT_MESSAGE_START", **message, "role": "assistant"})
    for word in WORDS:
        yield json_event({"type": "TEXT_MESSAGE_CONTENT", **message, "delta": word})
    yield json_event({"type": "TEXT_MESSAGE_END", **message})
    yield json_event({"type": "STATE_SNAPSHOT", "snapshot": {"step": 1}})
    yield json_event({"type": "RUN_FINISHED", **ids})


@streaming
async def agent(request: Request) -> Response:
    """Run an agent on a thread."""
    body = await request.json()
    events = agent_events(body["threadId"], body["runId"])
    return named(request, f"agent:{body['threadId']}", events)


# The app


async def page(_: Request) -> Response:
    """Respond with a page for the script of a test."""
    html = (
        '<link rel="icon" href="data:,"><div id="root"></div><script type="module" src="/page.js">'
    )
    return HTMLResponse(f"<!doctype html><title>page</title>{html}</script>")


async def release(request: Request) -> Response:
    """Let an answer continue that is held."""
    released[request.path_params["name"]].set()
    return Response()


async def record(request: Request) -> Response:
    """Return the runs of a name."""
    return JSONResponse(runs[request.path_params["name"]])


def _store() -> RedisStore | None:
    if "LEASE_SECONDS" not in os.environ:
        return None
    lease_seconds = float(os.environ["LEASE_SECONDS"])
    return RedisStore(os.environ["SSE_REDIS_URL"], lease_seconds=lease_seconds)


_ANY = ["GET", "POST", "DELETE"]

app = Starlette(
    routes=[
        Route("/page", page),
        Route("/release/{name}", release, methods=["POST"]),
        Route("/record/{name}", record),
        Route("/answers/{name}", answer, methods=["POST"]),
        Route("/answers/{name}/live", resume_endpoint("answer:{name}"), methods=_ANY),
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/chat/{chat}/stream", resume_endpoint("chat:{chat}"), methods=_ANY),
        Route("/v1/responses", create_response, methods=["POST"]),
        Route("/v1/responses/{id}", resume_endpoint("response:{id}", finished="replay")),
        Route("/v1/chat/completions", completion, methods=["POST"]),
        Route("/v1/chat/completions/{id}", resume_endpoint("completion:{id}")),
        Route("/agents", agent, methods=["POST"]),
        Route("/agents/{thread}/live", resume_endpoint("agent:{thread}"), methods=_ANY),
    ]
)
app.add_middleware(SSEMiddleware, identity_cookies=("user",), store=_store())
