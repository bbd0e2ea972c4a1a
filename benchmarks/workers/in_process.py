"""An app without a server: `python -m benchmarks.workers.in_process CONTESTANT CORES`.

The app's `send` does nothing. Each line on stdin, `LOOP BURST EVENTS`, runs one stream and is
answered with its CPU seconds. The process ends when stdin is closed.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from urllib.parse import urlencode

import uvloop
from starlette.types import ASGIApp, Message, Scope

from benchmarks.apps import CONTESTANTS
from benchmarks.workers.cores import pin_to_argument
from benchmarks.workers.scopes import request_scope

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


def stream_scope(headers: Mapping[str, str], burst: str, events: str) -> Scope:
    """Return the scope of a request for a stream."""
    return request_scope(f"/stream?{urlencode({'events': events, 'burst': burst})}", headers)


def main(contestant: str, cores: str = "") -> None:
    """Run a stream for each line on stdin."""
    chosen = CONTESTANTS[contestant]
    app = chosen.app()
    pin_to_argument(cores)
    print("ready", flush=True)
    for line in sys.stdin:
        loop, burst, events = line.split()
        scope = stream_scope(chosen.headers, burst, events)
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            print(runner.run(stream_once(app, scope)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
