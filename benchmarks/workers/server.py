"""A contestant's server: `python -m benchmarks.workers.server CONTESTANT [CORE]`.

It tells its port on stdout, answers each line on stdin by one on stdout, and ends with stdin, so
that it never outlives who has started it.
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

from benchmarks.apps import CONTESTANTS

LONGER_THAN_ANY_SUITE = 600  # seconds


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    return time.process_time()


def memory_bytes() -> int:
    """Return the resident memory of this process; where nobody tells, the most that it ever was."""
    gc.collect()
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


COMMANDS: dict[str, Callable[[], float]] = {"cpu": cpu_seconds, "memory": memory_bytes}


def obey() -> None:
    """Answer the parent until it is gone."""
    for line in sys.stdin:
        print(COMMANDS[line.strip()](), flush=True)
    os._exit(0)


def pin(core: str) -> None:
    """Keep this process on one core, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})


def main(contestant: str, core: str | None = None) -> None:
    """Serve `contestant` until stdin ends."""
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
    if core is not None:
        pin(core)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=obey, daemon=True).start()
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
