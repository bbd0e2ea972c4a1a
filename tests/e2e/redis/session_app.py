"""A web process that streams the sessions of workers."""

import json
import os
import secrets

from fastapi import FastAPI
from pydantic import BaseModel
from redis.asyncio import Redis
from starlette.responses import StreamingResponse

from sse_middleware import SSEMiddleware
from sse_middleware.channels import publish_event, sse_event_streamer

# The middleware's argument is the only place that names the Redis of channels.
URL = os.environ.pop("SSE_REDIS_URL")

app = FastAPI()
app.add_middleware(SSEMiddleware, mark="*/v1/*", redis_url=URL)
queue = Redis.from_url(URL)


class Request(BaseModel):
    user_query: str
    model_alias: str


@app.post("/v1/react/sessions")
async def react_session(request: Request) -> StreamingResponse:
    session_id = secrets.token_urlsafe(16)
    await publish_event("jobs", "job", {"session_id": session_id, **request.model_dump()})
    return StreamingResponse(sse_event_streamer(session_id), media_type="text/event-stream")


@app.post("/other_language/v1/react/sessions")
async def session_of_another_language(request: Request) -> StreamingResponse:
    session_id = secrets.token_urlsafe(16)
    job = {"session_id": session_id, "user_query": request.user_query}
    events = sse_event_streamer(session_id, compat="sse_session")
    await queue.rpush("jobs", json.dumps(job))
    return StreamingResponse(events, media_type="text/event-stream")
