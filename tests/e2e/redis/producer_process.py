"""A producer in a process of its own, which writes a stream into Redis by commands.

It prints the id of the stream, and "done" after each command that it reads: `write <count>`,
`block <seconds>` (its event loop), `end`.
"""

import asyncio
import sys
import time

from sse_middleware.stores.base import LogState
from sse_middleware.stores.redis import RedisStore
from sse_middleware.testing import FakeStream


def report(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def main(url: str, lease_seconds: str) -> None:
    store = RedisStore(url, lease_seconds=float(lease_seconds))
    stream = FakeStream(store)
    report(stream.id)
    while line := await asyncio.to_thread(sys.stdin.readline):
        match line.split():
            case ["write", count]:
                stream.write(int(count))
            case ["block", seconds]:
                report("blocks")
                time.sleep(float(seconds))  # noqa: ASYNC251 - the command is to block
            case ["end"]:
                stream.log.end(LogState.FINISHED)
        report("done")
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
