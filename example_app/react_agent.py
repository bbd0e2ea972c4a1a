"""`POST /v1/react/sessions`: an agent in a separate process thinks, searches and answers.

The web process publishes a job on one channel and reads the session's channel, on which the worker
publishes its steps. The two may start in any order.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from typing import Annotated, Final

from fastapi import HTTPException
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, StringConstraints

from example_app.agents import DEFAULT_ALIAS, ModelAlias
from sse_middleware import StoreError, streaming
from sse_middleware.channels import publish_event, sse_event_streamer

JOBS: Final = "example-app.react.jobs"
END: Final = "FinalAnswerStreamEnd"
# How long a browser waits for a worker to take its job, and then for its next event.
ACK_SECONDS: Final = float(os.environ.get("EXAMPLE_ACK_SECONDS", "10"))
IDLE_SECONDS: Final = float(os.environ.get("EXAMPLE_IDLE_SECONDS", "15"))
_PUBLISH_TIMEOUT_SECONDS: Final = 3.0

Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class ReactRequest(BaseModel):
    """The body; the alias selects the agent."""

    user_query: Words
    model_alias: ModelAlias = DEFAULT_ALIAS


class Job(BaseModel):
    """A question for a worker, which ignores one with an alias that it does not know."""

    session_id: str
    user_query: str
    model_alias: ModelAlias
    expires_at: float


@streaming
async def react_session(request: ReactRequest) -> EventSourceResponse:
    """Let a worker answer, and stream its events as `{"event_type", "payload"}`."""
    session_id = secrets.token_urlsafe(16)  # grants access to the session
    job = Job(
        session_id=session_id,
        user_query=request.user_query,
        model_alias=request.model_alias,
        expires_at=time.time() + ACK_SECONDS,
    )
    try:
        async with asyncio.timeout(_PUBLISH_TIMEOUT_SECONDS):
            await publish_event(JOBS, "job", job.model_dump(), key=session_id)
    except (StoreError, TimeoutError) as exc:
        raise HTTPException(503, "The agent is out of reach; try again in a moment.") from exc
    return EventSourceResponse(
        sse_event_streamer(
            session_id,
            ack_timeout=ACK_SECONDS,
            idle_timeout=IDLE_SECONDS,
        )
    )
