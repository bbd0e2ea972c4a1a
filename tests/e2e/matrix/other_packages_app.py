"""One answer by each package of the README's comparison, and by a marked route.

`POST /{package}/{name}` starts it, `GET` returns to it, `DELETE` stops it, and `GET /runs` returns
how the runs have ended. The query has `events`, the number of events, one each twentieth of a
second.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from assistant_stream import RunController
from assistant_stream.resumable import (
    create_redis_resumable_stream_store,
    create_resumable_assistant_stream_response,
    create_resumable_stream_context,
    create_resume_assistant_stream_response,
)
from assistant_stream.serialization.assistant_transport import AssistantTransportEncoder
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse
from fastapi_resumable_stream import (
    ActiveStreamRegistry,
    ResumableStream,
    StopController,
    resume_conversation_stream,
    start_conversation_stream,
    stop_conversation_stream,
    streaming_response,
)
from redis.asyncio import Redis
from sse_starlette import EventSourceResponse as SSEStarletteResponse

from sse_middleware import SSEMiddleware, resume_endpoint, streaming

redis: Any = Redis.from_url(os.environ["SSE_REDIS_URL"])
app = FastAPI()
app.add_middleware(SSEMiddleware)
ends: defaultdict[str, list[str]] = defaultdict(list)


async def numbers(package: str, events: int) -> AsyncIterator[int]:
    try:
        for number in range(events):
            yield number
            await asyncio.sleep(0.05)
    except BaseException:
        ends[package].append("stopped")
        raise
    ends[package].append("finished")


@app.get("/runs")
def runs() -> dict[str, list[str]]:
    return ends


@app.post("/fastapi/{name}", response_class=EventSourceResponse)
@app.get("/fastapi/{name}", response_class=EventSourceResponse)
async def by_fastapi(name: str, events: int = 20) -> AsyncIterator[int]:
    async for number in numbers("fastapi", events):
        yield number


@app.post("/sse-starlette/{name}")
@app.get("/sse-starlette/{name}")
async def by_sse_starlette(name: str, events: int = 20) -> Response:
    return SSEStarletteResponse(
        {"data": number} async for number in numbers("sse-starlette", events)
    )


context = create_resumable_stream_context(store=create_redis_resumable_stream_store(redis))
encoder = AssistantTransportEncoder()


@app.post("/assistant-stream/{name}")
async def by_assistant_stream(name: str, events: int = 20) -> Response:
    async def run(controller: RunController) -> None:
        async for number in numbers("assistant-stream", events):
            controller.append_text(str(number))

    return await create_resumable_assistant_stream_response(  # type: ignore[no-any-return]
        context=context, stream_id=name, callback=run, encoder=encoder
    )


@app.get("/assistant-stream/{name}")
async def of_assistant_stream(name: str) -> Response:
    return await create_resume_assistant_stream_response(  # type: ignore[no-any-return]
        context=context, stream_id=name, encoder=encoder
    )


@app.delete("/assistant-stream/{name}", status_code=204)
async def stop_assistant_stream(name: str) -> None:
    await context.delete(name)


stop = StopController(redis)
resumable = ResumableStream(redis, stop=stop)
registry = ActiveStreamRegistry(redis)


@app.post("/fastapi-resumable-stream/{name}")
async def by_resumable(name: str, events: int = 20) -> Response:
    async def chunks() -> AsyncIterator[str]:
        async for number in numbers("fastapi-resumable-stream", events):
            yield f"data: {number}\n\n"

    return await start_conversation_stream(resumable, registry, stop, name, f"{name}-1", chunks)  # type: ignore[no-any-return]


@app.get("/fastapi-resumable-stream/{name}")
async def of_resumable(name: str, after: int = 0) -> Response:
    stream = await resume_conversation_stream(resumable, registry, name, after=after)
    return Response(status_code=204) if stream is None else streaming_response(stream)


@app.delete("/fastapi-resumable-stream/{name}", status_code=204)
async def stop_resumable(name: str) -> None:
    await stop_conversation_stream(registry, stop, name)


@app.post("/marked/{name}")
@streaming(stream_name="{name}")
async def marked(name: str, events: int = 20) -> Response:
    async def chunks() -> AsyncIterator[str]:
        async for number in numbers("marked", events):
            yield f"data: {number}\n\n"

    return StreamingResponse(chunks(), media_type="text/event-stream")


app.add_route("/marked/{name}", resume_endpoint("{name}"), methods=["GET", "DELETE"])
