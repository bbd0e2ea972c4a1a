"""A contestant without a server: `python -m benchmarks.workers.in_process CONTESTANT [CORE]`.

It runs the app against a `send` that does nothing. Each line on stdin, `LOOP BURST EVENTS`, is
answered by the CPU seconds that it took; it ends with stdin.
"""

import asyncio
import sys
import time
from urllib.parse import urlencode

import uvloop
from starlette.types import ASGIApp, Message, Scope

from benchmarks.apps import CONTESTANTS
from benchmarks.workers.server import pin

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


async def stream_once(app: ASGIApp, scope: Scope) -> float:
    """Run one stream of `app` and return its CPU seconds."""
    client_leaves = asyncio.Event()

    async def receive() -> Message:
        await client_leaves.wait()
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    before = time.process_time()
    await app(scope, receive, send)
    return time.process_time() - before


def scope_of(contestant: str, burst: str, events: str) -> Scope:
    """Return the request's scope, as uvicorn writes it."""
    headers = {"Host": "127.0.0.1", **CONTESTANTS[contestant].headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/stream",
        "raw_path": b"/stream",
        "query_string": urlencode({"events": events, "burst": burst}).encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "state": {},
    }


def main(contestant: str, core: str | None = None) -> None:
    """Obey the lines on stdin."""
    app = CONTESTANTS[contestant].app()
    if core is not None:
        pin(core)
    print("ready", flush=True)
    for line in sys.stdin:
        loop, burst, events = line.split()
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            print(runner.run(stream_once(app, scope_of(contestant, burst, events))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
