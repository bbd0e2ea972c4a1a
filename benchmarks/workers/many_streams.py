"""Many idle streams: `python -m benchmarks.workers.many_streams CONTESTANT CORES STREAMS`.

The process plays the server: it needs no socket, so that no limit of files or ports applies. A JSON
object on stdout reports the figures; those of heartbeats are missing if there are none.
"""

import asyncio
import json
import os
import sys
import time
from typing import TYPE_CHECKING

import uvloop

from benchmarks.apps import CONTESTANTS, HEARTBEAT_VARIABLE
from benchmarks.workers.cores import pin_to_argument
from benchmarks.workers.scopes import request_scope
from benchmarks.workers.server import freeze, memory_bytes

if TYPE_CHECKING:
    from starlette.types import Message

    from benchmarks.apps import Contestant

_WARM_UP = 20
_OPENED_AT_ONCE = 10
_INTERVALS = 2


class Client:
    """One client that never leaves by itself, and measures how late its heartbeats are."""

    __slots__ = ("_app", "_headers", "_late", "_leaves", "_mark", "_received_at", "_requested")

    def __init__(self, contestant: "Contestant", app: object, late: list[float]) -> None:
        self._app = app
        self._headers = contestant.headers
        self._mark = contestant.heartbeat.strip()
        self._late = late
        self._leaves = asyncio.Event()
        self._received_at = 0.0
        self._requested = False

    async def run(self) -> None:
        """Run the app until its response ends or the client leaves."""
        app = self._app
        await app(request_scope("/idle", self._headers), self._receive, self._send)  # type: ignore[operator]

    def leave(self) -> None:
        """Disconnect."""
        self._leaves.set()

    async def _receive(self) -> "Message":
        if not self._requested:
            self._requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: "Message") -> None:
        now = time.monotonic()
        if self._mark and self._mark in message.get("body", b""):
            self._late.append(now - self._received_at)
        self._received_at = now


async def measure(contestant: "Contestant", streams: int) -> dict[str, float]:
    """Open the streams one after the other, keep them for some heartbeats, and drain them."""
    app, late = contestant.app(), list[float]()
    interval = float(os.environ[HEARTBEAT_VARIABLE])
    await _close(await _open(contestant, app, late, _WARM_UP))
    late.clear()
    before, start = memory_bytes(), time.monotonic()
    opened = await _open(contestant, app, late, streams)
    figures = {"µs per opening": (time.monotonic() - start) / streams * 1e6}
    if contestant.heartbeat:
        figures |= _lateness("while they open", late, interval)
        await asyncio.sleep(interval)
        late.clear()
        await asyncio.sleep(_INTERVALS * interval)
        figures |= _lateness("open", late, interval)
    figures["bytes per stream"] = (memory_bytes() - before) / streams
    if contestant.heartbeat and "sse_middleware" in sys.modules:
        from sse_middleware import drain

        start = time.monotonic()
        await drain()
        await asyncio.wait([task for _, task in opened])
        figures["seconds of the drain"] = time.monotonic() - start
    return figures


def _lateness(when: str, seconds: list[float], interval: float) -> dict[str, float]:
    late = sorted(one - interval for one in seconds) or [0.0]
    return {
        f"p99 of lateness in ms, {when}": late[len(late) * 99 // 100] * 1e3,
        f"maximum in ms, {when}": late[-1] * 1e3,
    }


async def _open(
    contestant: "Contestant", app: object, late: list[float], number: int
) -> list[tuple[Client, asyncio.Task[None]]]:
    opened = []
    for count in range(number):
        client = Client(contestant, app, late)
        opened.append((client, asyncio.create_task(client.run())))
        if count % _OPENED_AT_ONCE == 0:
            await asyncio.sleep(0)
    return opened


async def _close(opened: list[tuple[Client, asyncio.Task[None]]]) -> None:
    for client, _ in opened:
        client.leave()
    tasks = [task for _, task in opened]
    await asyncio.wait(tasks, timeout=1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main(contestant: str, cores: str, streams: str, freezes: str = "") -> None:
    """Measure, and report the figures."""
    pin_to_argument(cores)
    chosen = CONTESTANTS[contestant]
    if freezes:
        chosen.app()
        freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(measure(chosen, int(streams)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
