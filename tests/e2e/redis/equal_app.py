"""An app whose equal requests run once; a file has a line for each run."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, streaming

EVENTS = [b"data: %d\n\n" % number for number in range(30)]


def note_run(question: bytes) -> None:
    with Path(os.environ["RUNS"]).open("ab") as runs:
        runs.write(question + b"\n")


@streaming(attach="kept", cache_ttl=600)
async def answer(request: Request) -> StreamingResponse:
    question = await request.body()
    await asyncio.to_thread(note_run, question)
    await asyncio.sleep(1)  # it thinks

    async def events() -> AsyncIterator[bytes]:
        for event in EVENTS:
            yield event
            await asyncio.sleep(0.005)

    return StreamingResponse(events(), media_type="text/event-stream")


app = SSEMiddleware(
    Starlette(routes=[Route("/answers", answer, methods=["POST"])]), max_readers=1000
)
