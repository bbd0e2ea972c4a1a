"""Visitors of the example: they read, leave, return, ask the same again, and come all at once."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import httpx2

from sse_middleware import EventParser

QUESTIONS = ("event loop", "what is a task", "how to cancel", "generators", "context managers")
_EVENTSOURCE = {
    "accept": "text/event-stream",
    "cache-control": "no-cache",
    "user-agent": "Mozilla/5.0 (the visitors of the dashboard)",
}
_PATIENCE_SECONDS = 60.0

Visit = Callable[[httpx2.AsyncClient], Awaitable[None]]


async def visit_until_cancelled(url: str, count: int) -> None:
    """Be a number of visitors, each with pauses between its visits.

    Args:
        url: of the server.
        count: the visitors.
    """
    limits = httpx2.Limits(max_connections=None)
    async with (
        httpx2.AsyncClient(base_url=url, timeout=_PATIENCE_SECONDS, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        for number in range(count):
            group.create_task(_visitor(client, number))
        group.create_task(_crowd(client))


async def _visitor(client: httpx2.AsyncClient, number: int) -> None:
    chance = random.Random(number)  # noqa: S311 - no secret
    visits: Sequence[Visit] = (_search, _leave_and_return, _search_slowly, _complete, _talk)
    while True:
        try:
            await chance.choices(visits, (4, 2, 1, 2, 3))[0](client)
        except httpx2.HTTPError:  # a rejected or failed stream
            await asyncio.sleep(1)
        await asyncio.sleep(chance.uniform(0.2, 1.5))


async def _crowd(client: httpx2.AsyncClient) -> None:
    """Exceed the limit of the server now and then."""
    while True:
        await asyncio.sleep(40)
        crowd = (_search_slowly(client) for _ in range(25))
        await asyncio.gather(*crowd, return_exceptions=True)


def _path(milliseconds: int) -> str:
    question = random.choice(QUESTIONS).replace(" ", "+")  # noqa: S311
    return f"/stream/search?query={question}&delay_ms={milliseconds}"


def _headers() -> dict[str, str]:
    return {**_EVENTSOURCE, "authorization": f"Bearer {random.randrange(1000)}"}  # noqa: S311


async def _search(client: httpx2.AsyncClient) -> None:
    await client.get(_path(20), headers=_headers())


async def _search_slowly(client: httpx2.AsyncClient) -> None:
    await client.get(_path(250), headers=_headers())


async def _leave_and_return(client: httpx2.AsyncClient) -> None:
    """Lose the connection after some events, and continue with the last event id."""
    parser, headers, path = EventParser(), _headers(), _path(60)
    async with client.stream("GET", path, headers=headers) as response:
        async for data in response.aiter_raw():
            if parser.last_event_id.endswith("-9"):
                break
            parser.feed(data)
    if parser.last_event_id and random.randrange(5):  # noqa: S311 - one in five does not return
        await asyncio.sleep(0.5)
        await client.get(path, headers={**headers, "last-event-id": parser.last_event_id})


async def _complete(client: httpx2.AsyncClient) -> None:
    message = {"role": "user", "content": random.choice(QUESTIONS)}  # noqa: S311
    body = {"model": "qwen3-max", "stream": True, "messages": [message]}
    await client.post("/v1/chat/completions", json=body, headers={"authorization": "Bearer k"})


async def _talk(client: httpx2.AsyncClient) -> None:
    """Ask what others have asked in the same thread: some answers come from the cache."""
    question = f"{random.choice(QUESTIONS)} {random.randrange(30)}"  # noqa: S311
    await client.post("/threads/docs/messages", json={"content": question})
