"""Two uvicorn servers in one process: `python -m tests.e2e.drain.two_servers WAY PORT PORT`.

Their apps are marked on their endpoints, so that it is not known before the first request that
there are streams. A signal that uvicorn raises again after its end has no effect here.
"""

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, drain, streaming


async def _events() -> AsyncIterator[str]:
    number = 0
    while True:
        number += 1
        yield f"data: {number}\n\n"
        await asyncio.sleep(0.1)


@streaming(drain_seconds=2)
async def feed(request: Request) -> Response:
    """Send a number each tenth of a second."""
    return StreamingResponse(_events(), media_type="text/event-stream")


def _server(port: str) -> uvicorn.Server:
    app = Starlette(routes=[Route("/feed", feed)])
    app.add_middleware(SSEMiddleware)
    return uvicorn.Server(uvicorn.Config(app, port=int(port), log_level="warning"))


async def _serve_together(one: uvicorn.Server, two: uvicorn.Server) -> None:
    first = asyncio.create_task(one.serve())
    while not one.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.05)
    await asyncio.gather(first, two.serve())


async def _serve_later(one: uvicorn.Server, two: uvicorn.Server) -> None:
    first = asyncio.create_task(one.serve())
    while not one.server_state.tasks:  # noqa: ASYNC110 - as above
        await asyncio.sleep(0.05)
    await asyncio.gather(first, two.serve())


async def _serve_in_turn(one: uvicorn.Server, two: uvicorn.Server) -> None:
    await one.serve()
    await two.serve()


def in_one_loop(one: uvicorn.Server, two: uvicorn.Server) -> None:
    """Run both in one event loop."""
    asyncio.run(_serve_together(one, two))


def in_one_loop_later(one: uvicorn.Server, two: uvicorn.Server) -> None:
    """Run both in one event loop, the second one from the first request on."""
    asyncio.run(_serve_later(one, two))


def in_turn_in_one_loop(one: uvicorn.Server, two: uvicorn.Server) -> None:
    """Run the second one after the first one, in its event loop."""
    asyncio.run(_serve_in_turn(one, two))


def in_turn(one: uvicorn.Server, two: uvicorn.Server) -> None:
    """Run the second one after the first one, in another event loop."""
    one.run()
    two.run()


def with_a_thread(one: uvicorn.Server, two: uvicorn.Server) -> None:
    """Run the second one in a thread until the first one has ended."""
    thread = threading.Thread(target=two.run)
    thread.start()
    one.run()
    two.should_exit = True
    thread.join()


def in_threads(one: uvicorn.Server, two: uvicorn.Server) -> None:
    """Run both in threads, and drain them when a signal has arrived."""
    signalled = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: signalled.set())
    servers = (one, two)
    threads = [threading.Thread(target=server.run) for server in servers]
    for thread in threads:
        thread.start()
    while not signalled.wait(0.05):
        pass
    asyncio.run(drain())
    for server, thread in zip(servers, threads, strict=True):
        server.should_exit = True
        thread.join()


WAYS = {
    way.__name__.replace("_", "-"): way
    for way in (
        in_one_loop,
        in_one_loop_later,
        in_turn_in_one_loop,
        in_turn,
        with_a_thread,
        in_threads,
    )
}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    WAYS[sys.argv[1]](*map(_server, sys.argv[2:]))
