"""An app that saves its answers by `on_end`, in `SAVE_SECONDS`, in the file `SAVED`."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import EndInfo, Event, SSEMiddleware, streaming


async def save(info: EndInfo, events: list[Event]) -> None:
    """Save an answer, like a slow database."""
    await asyncio.sleep(float(os.environ["SAVE_SECONDS"]))
    line = json.dumps([info.reason, [event.data for event in events]]) + "\n"
    with Path(os.environ["SAVED"]).open("a") as saved:  # noqa: ASYNC230 - a line in a local file
        saved.write(line)


@streaming(on_end=save)
async def numbers(request: Request) -> Response:
    """Count to `n`, or without end."""
    last = int(request.query_params.get("n", "1000000"))

    async def events() -> AsyncIterator[str]:
        for number in range(1, last + 1):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(routes=[Route("/numbers", numbers)])
app.add_middleware(SSEMiddleware)
