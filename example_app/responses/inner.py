"""The requests that the server makes to itself, through all its layers and without a socket.

A response in the background that no client reads has the server as its client.
"""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final

import httpx2

from example_app.completions.in_process import InProcessTransport
from sse_middleware.sources import UpstreamError, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import ASGIApp

    from sse_middleware import Event

PATH: Final = "/v1/responses"


class InnerClient:
    """Create, find and stop the streams of responses.

    Args:
        app: the app, with its middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        """Create the client."""
        transport = InProcessTransport(app)
        self._client = httpx2.AsyncClient(
            transport=transport, base_url="http://example", timeout=None
        )
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, body: dict[str, Any], authorization: str) -> dict[str, Any]:
        """Begin a response in the background, and return its object.

        Raises:
            UpstreamError: the server does not accept the request.
        """
        headers = {"accept": "text/event-stream", **_authorization(authorization)}
        request = self._client.build_request("POST", PATH, json=body, headers=headers)
        events = upstream(self._client, request, parse=True)
        created = json.loads((await anext(events)).data)
        task = asyncio.create_task(_read(events))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        response: dict[str, Any] = created["response"]
        return response

    async def is_running(self, response_id: str, authorization: str) -> bool:
        """Return whether a worker produces a response."""
        headers = _authorization(authorization)
        found = await self._client.head(f"{PATH}/{response_id}/live", headers=headers)
        return found.status_code == httpx2.codes.OK

    async def stop(self, response_id: str, authorization: str) -> None:
        """Stop a response, on any worker."""
        headers = _authorization(authorization)
        await self._client.delete(f"{PATH}/{response_id}/live", headers=headers)

    async def aclose(self) -> None:
        """Wait for the responses, which end at the deadline of the drain, and close the client."""
        if self._tasks:
            seconds = float(os.environ.get("SSE_DRAIN_SECONDS") or 5) + 1
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()


async def _read(events: AsyncGenerator[Event, None]) -> None:
    """Read a response to its end, or until it is stopped; its record has the outcome."""
    with suppress(UpstreamError):
        async with aclosing(events):
            async for _ in events:
                pass


def _authorization(value: str) -> dict[str, str]:
    return {"authorization": value} if value else {}
