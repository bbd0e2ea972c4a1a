"""A worker: `python -m benchmarks.workers.publisher CONTESTANT [CORE]`.

Each line on stdin, `CHANNEL COUNT PER_SECOND`, publishes so many events, which carry the time they
were sent at, and is answered by how many there were; a count of 0 says that a worker is there. It
ends with stdin.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop

from benchmarks.apps import CHANNELS, REDIS_VARIABLE
from benchmarks.workers.server import pin

Publish = Callable[[str, object], Awaitable[object]]


def by_us() -> Publish:
    """Return what publishes on a channel."""
    from sse_middleware.channels import Publisher

    publisher = Publisher(os.environ[REDIS_VARIABLE])

    async def publish(channel: str, data: object) -> None:
        await publisher.publish(channel, "message" if data else "worker_ack", data)

    return publish


def by_redis_py() -> Publish:
    """Return what publishes by Redis' own means."""
    from redis.asyncio import Redis

    client = Redis.from_url(os.environ[REDIS_VARIABLE])

    async def publish(channel: str, data: object) -> None:
        await client.publish(channel, json.dumps(data))

    return publish


async def publish_all(publish: Publish, channel: str, count: int, per_second: float) -> None:
    """Publish events at a pace, or as fast as they are taken where that is slower."""
    if not count:
        await publish(channel, {})
    due = time.monotonic()
    for _ in range(count):
        await publish(channel, {"sent": time.monotonic()})
        due = max(due + 1 / per_second, time.monotonic() - 0.1)
        await asyncio.sleep(max(0.0, due - time.monotonic()))


def main(contestant: str, core: str | None = None) -> None:
    """Publish what stdin asks for."""
    if core is not None:
        pin(core)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    publish = by_us() if contestant == CHANNELS else by_redis_py()
    print("ready", flush=True)
    for line in sys.stdin:
        channel, count, per_second = line.split()
        loop.run_until_complete(publish_all(publish, channel, int(count), float(per_second)))
        print(count, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
