"""The example app as its tests use it: in process, with its lifespan."""

from __future__ import annotations

import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
from asgi_lifespan import LifespanManager

from example_app.app import create_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

QUESTION = "What is the global interpreter lock?"
CONTROL_EVENTS = {"start", "heartbeat", "error", "reset"}
"""The events that the middleware may add to a stream."""


@asynccontextmanager
async def example_client() -> AsyncIterator[httpx.AsyncClient]:
    """Run the example, without pauses between words, and give a client of it."""
    async with (
        LifespanManager(create_app(token_delay_seconds=0)) as manager,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=manager.app),
            base_url="http://example.test",
        ) as client,
    ):
        yield client


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """List the app's own events of a stream: name and decoded data."""
    events = []
    for block in re.split(r"\r?\n\r?\n", response.text):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":")
        )
        if "data" in fields and fields.get("event") not in CONTROL_EVENTS:
            events.append((fields.get("event", "message"), json.loads(fields["data"])))
    return events


async def post(
    client: httpx.AsyncClient, query: object, accept: str, **body: Any
) -> httpx.Response:
    """Search."""
    return await client.post("/search", json={"query": query, **body}, headers={"Accept": accept})
