"""A publisher on channels: `python -m benchmarks.workers.publisher CONTESTANT CORES`.

Each line on stdin, `CHANNEL COUNT PER_SECOND`, publishes COUNT events with the time at which they
are sent, and is answered with COUNT. A count of 0 announces that a worker is there. The process
ends when stdin is closed.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop

from benchmarks.apps import CHANNELS, REDIS_VARIABLE
from benchmarks.workers.cores import pin_to_argument

Publish = Callable[[str, object], Awaitable[object]]


def channels_publisher() -> Publish:
    """Return a function that publishes on a channel of the middleware."""
    from sse_middleware.channels import Publisher

    publisher = Publisher(os.environ[REDIS_VARIABLE])

    async def publish(channel: str, data: object) -> None:
        await publisher.publish(channel, "message" if data else "worker_ack", data)

    return publish


def pubsub_publisher() -> Publish:
    """Return a function that publishes with redis-py."""
    from redis.asyncio import Redis

    client = Redis.from_url(os.environ[REDIS_VARIABLE])

    async def publish(channel: str, data: object) -> None:
        await client.publish(channel, json.dumps(data))

    return publish


async def publish_all(publish: Publish, channel: str, count: int, per_second: float) -> None:
    """Publish events at a rate, or as fast as possible if that is slower."""
    if not count:
        await publish(channel, {})
    due = time.monotonic()
    for _ in range(count):
        await publish(channel, {"sent": time.monotonic()})
        due = max(due + 1 / per_second, time.monotonic() - 0.1)
        await asyncio.sleep(max(0.0, due - time.monotonic()))


def main(contestant: str, cores: str = "") -> None:
    """Publish the events that the lines on stdin ask for."""
    pin_to_argument(cores)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    publish = channels_publisher() if contestant == CHANNELS else pubsub_publisher()
    print("ready", flush=True)
    for line in sys.stdin:
        channel, count, per_second = line.split()
        loop.run_until_complete(publish_all(publish, channel, int(count), float(per_second)))
        print(count, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
