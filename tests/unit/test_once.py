"""Several event loops, several instances, and files, which are read in a thread."""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware
from tests.support.asgi import EVENTSOURCE, handle, stream_of, stream_start
from tests.support.clock import VirtualClockLoop
from tests.support.middleware import marking

Result = TypeVar("Result")


async def names(app: SSEMiddleware) -> list[str]:
    return (await handle(app, headers=EVENTSOURCE)).names


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in an event loop of its own, with a virtual clock of its own."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        return runner.run(coroutine)


def test_one_instance_serves_loop_after_loop() -> None:
    app = marking(stream_of(b"data: x\n\n", pause=0.06), heartbeat_interval=0.05)
    for _ in range(3):
        assert run(names(app))[:3] == ["start", "heartbeat", "message"]


def test_one_instance_serves_several_loops_at_once() -> None:
    app = marking(stream_of(*[b"data: x\n\n"] * 5, pause=0.06), heartbeat_interval=0.05)
    seen: list[list[str]] = []
    threads = [threading.Thread(target=lambda: seen.append(run(names(app)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    for one in seen:
        assert (one[0], one[-1]) == ("start", "complete")
        assert one.count("message") == 5
        assert one.count("heartbeat") >= 3


def test_instances_with_different_settings_are_independent() -> None:
    source = stream_of(b"data: x\n\n", pause=0.06)
    one = marking(source, heartbeat_interval=None)
    other = marking(source, event_prefix="sse-", heartbeat_interval=0.05)

    async def both() -> tuple[list[str], list[str]]:
        return await asyncio.gather(names(one), names(other))

    first, second = run(both())
    assert first == ["start", "message", "complete"]
    assert (second[0], second[-1]) == ("sse-start", "sse-complete")
    assert "sse-heartbeat" in second


def test_a_file_that_the_app_passes_to_the_server_is_sent_between_our_events(
    tmp_path: Path,
) -> None:
    file = tmp_path / "recorded.sse"
    file.write_bytes(b"data: %s\n\n" % (b"x" * 1000) * 200)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start([(b"content-length", b"201600")]))
        await send({"type": "http.response.pathsend", "path": str(file)})

    exchange = asyncio.run(handle(marking(app), headers=EVENTSOURCE))
    assert (exchange.names[0], exchange.names[-1]) == ("start", "complete")
    assert exchange.names.count("message") == 200
    assert exchange.ended
    plain = asyncio.run(handle(marking(app)))
    assert plain.body == file.read_bytes()
