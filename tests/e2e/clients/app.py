"""The streams that real clients read, slow enough for heartbeats between the events.

Each path begins with the name of the client and the scenario; `/sent/{client}` returns the bytes of
its responses. All streams are marked but that of `polled`, since a marked one ends for good.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, streaming
from tests.e2e.clients.recording_app import Recording

PAUSE_SECONDS = 0.7

Script = list[bytes | None]
"""The chunks of a stream, with `None` for a pause."""

ROCKET = "🚀".encode()

SCRIPTS: dict[str, Script] = {
    "whole": [
        b"data: one\n\n",
        None,
        b'event: named\ndata: {"n": 2}\n\n',
        b"data: three\n\ndata: four\n\n",
        None,
        b"data: several\ndata:  lines\ndata:\ndata: of data\n\n",
        None,
        b": a comment of the app\n\n",
        "data: ünïcödé 🚀 \u2028 日本\n\n".encode(),
        None,
        b"event: done\ndata: {}\n\n",
    ],
    "halves": [
        None,
        b"data: ha",
        None,
        b"lf\n",
        None,
        b"data: and half\n",
        b"\n",
        b"event: nam",
        None,
        b"ed\ndata: " + ROCKET[:2],
        None,
        ROCKET[2:] + b"\n\n",
        b"event: done\n",
        None,
        b"data: {}\n\ndata: a tail that is never dispatched",
    ],
    "crlf": [
        None,
        b"data: one\r\n\r\n",
        None,
        b"event: named\r\ndata: two\r\ndata: lines\r\n\r",
        None,
        b"\ndata: three\r",
        None,
        b"\n\r\n",
        b": a comment of the app\r\n\r\n",
        None,
        b"event: done\r\ndata: {}\r\n\r\n",
    ],
    "ids": [
        None,
        b"id: 1\ndata: one\n\n",
        None,
        b": a comment of the app\n\n",
        b"id: 2\nevent: named\ndata: two\n\n",
        None,
        b"data: without an id\n\n",
        None,
        b"id: 3\nretry: 1500\ndata: three\n\n",
        None,
        b"event: done\nid: 4\ndata: {}\n\n",
    ],
}

POLLED: list[Script] = [
    [b"retry: 200\ndata: the first time\n\n", None],
    [None, b"data: the second time\n\nevent: done\ndata: {}\n\n"],
]
"""The streams of an `EventSource` that reconnects."""

RESUMED: dict[str, Script] = {
    "": [None, b"id: 1\nretry: 200\ndata: one\n\nid: 2\ndata: two\n\n", None],
    "2": [None, b"id: 3\ndata: three\n\nevent: done\nid: 4\ndata: {}\n\n"],
}
"""The streams of an `EventSource` that reconnects, by the last event id, which is the app's."""


async def play(script: Script) -> AsyncIterator[bytes]:
    for chunk in script:
        if chunk is None:
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            yield chunk


def event_stream(script: Script) -> Response:
    return StreamingResponse(play(script), media_type="text/event-stream")


@streaming()
async def streams(request: Request) -> Response:
    """Play a scenario, or respond with JSON instead of a stream."""
    match request.path_params["scenario"]:
        case "refused":
            return JSONResponse({"detail": "refused"}, HTTPStatus.FORBIDDEN)
        case "json":
            return JSONResponse({"detail": "no stream today"})
        case "resumed":
            return event_stream(RESUMED[request.headers.get("last-event-id", "")])
        case scenario:
            return event_stream(SCRIPTS[scenario])


async def polled(request: Request) -> Response:
    """Play the next stream of an `EventSource` that reconnects."""
    scripts = app.sent[request.path_params["client"]]["polled"]  # with this response
    return event_stream(POLLED[len(scripts) - 1])


# The protocol of OpenAI


def chat_chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
FIRST = chat_chunk({"role": "assistant", "content": ""})
TO, BE = chat_chunk({"content": "to "}), chat_chunk({"content": "be ünïcödé 🚀"})
STOP = chat_chunk({}, "stop")

CHATS: dict[str, Script] = {
    "whole": [FIRST, None, TO, None, BE, None, STOP, DONE],
    "commented": [
        b": PROCESSING\n\n",
        None,
        b": PROCESSING\n\n",
        *(FIRST, None, b": PROCESSING\n", None, TO, BE, STOP, None, DONE),
    ],
    "halves": [
        *(None, FIRST[:30], None, FIRST[30:-1], None, FIRST[-1:] + TO[:-2], None, TO[-2:]),
        *(BE, STOP, DONE),
    ],
    "crlf": [
        None if chunk is None else chunk.replace(b"\n", b"\r\n")
        for chunk in (None, FIRST, None, TO[:-1], None, b"\n", BE, STOP, None, DONE)
    ],
    "ids": [b"id: 1\n" + FIRST, None, b"id: 2\n" + TO, None, BE, None, STOP, DONE],
    "unfinished": [FIRST, None, TO],
    "long": [FIRST, *(12 * [None, TO]), STOP, DONE],
    "long-crlf": [FIRST.replace(b"\n", b"\r\n"), *(12 * [None, TO.replace(b"\n", b"\r\n")])],
    "stuck": [FIRST, None, TO, TO[:40], *(12 * [None])],
}

FAILING: dict[str, Script] = {
    "failing": [FIRST, None, TO, None],
    "failing-half": [FIRST, None, TO, TO[:40], None],
}
"""The chunks that are sent before the app raises an exception."""


@streaming()
async def chat(request: Request) -> Response:
    """Respond as an endpoint for chat completions does."""
    model = request.path_params["scenario"]
    if model == "refused":
        error = {"message": "refused", "type": "invalid_request_error", "code": "no"}
        return JSONResponse({"error": error}, HTTPStatus.BAD_REQUEST)
    if model == "json":
        return JSONResponse({"detail": "no stream today"})
    if model in FAILING:
        return StreamingResponse(fail(FAILING[model]), media_type="text/event-stream")
    return event_stream(CHATS[model])


async def fail(script: Script) -> AsyncIterator[bytes]:
    async for chunk in play(script):
        yield chunk
    raise ValueError("swordfish")


# The protocol of AG-UI


def agent_event(kind: str, **fields: Any) -> bytes:
    return b"data: " + json.dumps({"type": kind, **fields}, ensure_ascii=False).encode() + b"\n\n"


@streaming()
async def agent(request: Request) -> Response:
    """Run an agent that sends a message, calls a tool and changes its state."""
    body = await request.json()
    run = {"threadId": body["threadId"], "runId": body["runId"]}
    message, call = {"messageId": "m1"}, {"toolCallId": "c1"}
    second = agent_event("TEXT_MESSAGE_CONTENT", **message, delta="be ünïcödé 🚀\nand lines")
    match request.path_params["scenario"]:
        case "refused":
            return JSONResponse({"detail": "refused"}, HTTPStatus.FORBIDDEN)
        case "json":
            return JSONResponse({"detail": "no stream today"})
        case "error":
            return event_stream(
                [
                    None,
                    agent_event("RUN_STARTED", **run),
                    None,
                    agent_event("RUN_ERROR", message="no"),
                ]
            )
    return event_stream(
        [
            None,
            agent_event("RUN_STARTED", **run),
            None,
            agent_event("TEXT_MESSAGE_START", **message, role="assistant"),
            agent_event("TEXT_MESSAGE_CONTENT", **message, delta="to "),
            None,
            second[:40],
            None,
            second[40:],
            agent_event("TEXT_MESSAGE_END", **message),
            agent_event("TOOL_CALL_START", **call, toolCallName="look", parentMessageId="m1"),
            agent_event("TOOL_CALL_ARGS", **call, delta='{"at":'),
            None,
            agent_event("TOOL_CALL_ARGS", **call, delta=' "it"}'),
            agent_event("TOOL_CALL_END", **call),
            agent_event("STATE_SNAPSHOT", snapshot={"step": 1}),
            None,
            agent_event("RUN_FINISHED", **run),
        ]
    )


# The app


async def page(request: Request) -> Response:
    """Respond with a page, which gives scripts an origin."""
    return HTMLResponse('<!doctype html><link rel="icon" href="data:,"><title>page</title>')


_app = Starlette(
    routes=[
        Route("/page", page),
        Route("/{client}/polled/stream", polled),
        Route("/{client}/{scenario}/stream", streams, methods=["GET", "POST"]),
        Route("/{client}/{scenario}/v1/chat/completions", chat, methods=["POST"]),
        Route("/{client}/{scenario}/agent", agent, methods=["POST"]),
    ]
)
_app.add_middleware(SSEMiddleware)

app = Recording(_app)
