"""A contestant's server: `python -m benchmarks.workers.server CONTESTANT CORES`.

It prints its port, answers each line on stdin with a number, and ends when stdin is closed, so that
it never outlives its parent.
"""

import gc
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from benchmarks.apps import CONTESTANTS, LONGER_THAN_ANY_SUITE
from benchmarks.workers.cores import pin_to_argument


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    return time.process_time()


def memory_bytes() -> int:
    """Return the resident memory of this process, or its peak if there is no `/proc`."""
    gc.collect()
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def freeze() -> float:
    """Exclude the objects of the start-up from later garbage collections; return their number."""
    gc.collect()
    gc.freeze()
    return gc.get_freeze_count()


COMMANDS: dict[str, Callable[[], float]] = {
    "cpu": cpu_seconds,
    "memory": memory_bytes,
    "freeze": freeze,
}


def answer_commands() -> None:
    """Answer the parent's commands until it closes stdin, then exit."""
    for line in sys.stdin:
        print(COMMANDS[line.strip()](), flush=True)
    os._exit(0)


def main(contestant: str, cores: str = "") -> None:
    """Serve `contestant` until stdin is closed."""
    app = CONTESTANTS[contestant].app()
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=LONGER_THAN_ANY_SUITE,
    )
    config.load()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(config.backlog)
    pin_to_argument(cores)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=answer_commands, daemon=True).start()
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
