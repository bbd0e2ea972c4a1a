"""The workload whose instructions are counted.

    python -m benchmarks.workers.instruction_workload CORES '{CONTESTANT: {OPERATION: [N1, N2]}}'

It plays the server in process: no sockets, one asyncio loop, and a clock that only the loop
advances. Each operation warms up, then runs N1 times, then N2 times. A call of `getpgid` before and
after each of the two runs marks it, as callgrind writes its counts there
(`--dump-before=getpgid`). A JSON object of the same shape on stdout reports the two runs of each
operation: how many operations and how many messages the server has received.
"""

import asyncio
import gc
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.workers.cores import pin_to_argument
from benchmarks.workers.scopes import request_scope
from benchmarks.workers.virtual_time import VirtualTime

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

    from benchmarks.apps import Contestant

EVENT_MARK = b'"content":"hello"'
JSON_MARK = b'"price":1.5}'
BURST = 50  # events
HEARTBEAT_SECONDS = 5.0
NO_HEARTBEAT_SECONDS = 1e6
IDLE_STREAMS = 20


@dataclass
class Exchange:
    """One request, seen from the server.

    Attributes:
        app: the contestant's.
        headers: of the request.
        target: the path and the query.
        client_leaves: set it to disconnect the client.
        bodies: of the messages that the app has sent.
    """

    app: "ASGIApp"
    headers: Mapping[str, str]
    target: str
    client_leaves: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[bytes] = field(default_factory=list)
    _request_is_pending: bool = True

    def start(self) -> asyncio.Task[None]:
        """Run the app in a new task, as servers do."""
        return asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        await self.app(request_scope(self.target, self.headers), self._receive, self._send)

    async def _receive(self) -> "Message":
        if self._request_is_pending:
            self._request_is_pending = False
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.client_leaves.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: "Message") -> None:
        self.bodies.append(message.get("body", b""))


class Client:
    """A client of one contestant's app, which keeps the messages that it receives."""

    def __init__(self, contestant: "Contestant") -> None:
        self._app = contestant.app()
        self._headers = contestant.headers
        self._received: list[list[bytes]] = []

    def request(self, target: str) -> Exchange:
        """Return a request for a path with a query, which is not started yet."""
        exchange = Exchange(self._app, self._headers, target)
        self._received.append(exchange.bodies)
        return exchange

    def take_bodies(self) -> list[bytes]:
        """Return the bodies of all messages since the last call."""
        received, self._received = self._received, []
        return [body for bodies in received for body in bodies]


async def request_json(client: Client, number: int) -> None:
    """Request JSON, one response after the other."""
    for _ in range(number):
        await client.request("/json").start()


async def open_streams(client: Client, number: int) -> None:
    """Open streams of one event, one after the other."""
    for _ in range(number):
        await client.request("/stream?events=1&burst=1").start()


async def send_events(client: Client, number: int) -> None:
    """Send events on one stream, one in each turn of the loop."""
    await client.request(f"/stream?events={number}&burst=1").start()


async def send_bursts(client: Client, number: int) -> None:
    """Send events on one stream, `BURST` of them in each turn of the loop."""
    await client.request(f"/stream?events={number}&burst={BURST}").start()


async def wait_for_heartbeats(client: Client, number: int) -> None:
    """Keep silent streams open until each has received its share of the heartbeats."""
    exchanges = [client.request("/idle") for _ in range(IDLE_STREAMS)]
    tasks = [exchange.start() for exchange in exchanges]
    await asyncio.sleep((number // IDLE_STREAMS + 0.5) * HEARTBEAT_SECONDS)
    for exchange, task in zip(exchanges, tasks, strict=True):
        exchange.client_leaves.set()
        task.cancel()
    await asyncio.wait(tasks)


@dataclass(frozen=True)
class Operation:
    """An operation whose instructions are counted.

    Attributes:
        run: runs it a number of times.
        mark: the bytes that the client receives once for each time; empty: those of a heartbeat.
    """

    run: Callable[[Client, int], Awaitable[None]]
    mark: bytes


OPERATIONS = {
    "json": Operation(request_json, JSON_MARK),
    "stream": Operation(open_streams, EVENT_MARK),
    "event": Operation(send_events, EVENT_MARK),
    "burst": Operation(send_bursts, EVENT_MARK),
    "heartbeat": Operation(wait_for_heartbeats, b""),
}


def mark_instructions() -> None:
    """Let callgrind write the number of instructions since the last call."""
    os.getpgid(0)


async def run_marked(contestant: str, name: str, numbers: list[int]) -> list[dict[str, int]]:
    """Warm an operation up, and run it as often as each of `numbers` requests."""
    from benchmarks.apps import CONTESTANTS, HEARTBEAT_VARIABLE  # after the clock is installed

    chosen, operation = CONTESTANTS[contestant], OPERATIONS[name]
    interval = NO_HEARTBEAT_SECONDS if operation.mark else HEARTBEAT_SECONDS
    os.environ[HEARTBEAT_VARIABLE] = str(interval)
    client = Client(chosen)
    await operation.run(client, numbers[0])
    client.take_bodies()
    report = []
    for number in numbers:
        mark_instructions()
        await operation.run(client, number)
        mark_instructions()
        bodies = client.take_bodies()
        found = b"".join(bodies).count(operation.mark or chosen.heartbeat)
        report.append({"operations": found, "messages": len(bodies)})
    return report


def main(cores: str, work: str) -> None:
    """Run the operations, and report them; stop between two if the parent has ended."""
    pin_to_argument(cores)
    virtual_time = VirtualTime()
    virtual_time.install()
    gc.disable()
    parent = os.getppid()
    report: dict[str, dict[str, list[dict[str, int]]]] = {}
    for contestant, operations in json.loads(work).items():
        report[contestant] = {}
        for name, numbers in operations.items():
            with asyncio.Runner(loop_factory=virtual_time.new_loop) as runner:
                report[contestant][name] = runner.run(run_marked(contestant, name, numbers))
            if os.getppid() != parent:
                return
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
