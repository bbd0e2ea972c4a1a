"""The servers and frameworks of the matrix, the requests, and what the servers respond to them.

Each pair of server and framework runs three times: with the middleware and its mark, with the
middleware alone, and without it. All requests are sent to all of them at once.
"""

import asyncio
import importlib.util
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.matrix.recording_client import Answer, Ask, RecordingClient
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import Server, serving

LIBRARY = EVENTSOURCE | {"user-agent": "python-requests/2.32"}
"""The headers of sseclient: those of a browser, but for the name."""
HEARTBEAT_SECONDS = 0.3


@dataclass(frozen=True)
class Row:
    """A server and the version of HTTP."""

    server: str
    http2: bool = False


ROWS = {
    "uvicorn-httptools": Row("uvicorn-httptools"),
    "uvicorn-h11": Row("uvicorn-h11"),
    "hypercorn": Row("hypercorn"),
    "hypercorn-http2": Row("hypercorn", http2=True),  # without TLS, by prior knowledge
    "granian": Row("granian"),
    "granian-http2": Row("granian", http2=True),
    "gunicorn-asgi": Row("gunicorn-asgi"),
    "gunicorn-uvicorn": Row("gunicorn-uvicorn"),
}
CLIENT_FAILS = {ROWS["granian-http2"]: {"head of json"}}
"""Responses with which the client fails: granian sends the body of a HEAD in HTTP/2."""
AT_ONCE = 3
"""The number of pairs that run at a time; they mostly wait."""

FRAMEWORKS = ("starlette", "fastapi", "litestar", "quart", "django", "plain_asgi")

UPLOAD = bytes(range(256)) * 4096


OTHERS = {
    "json": Ask("/json"),
    "json for an EventSource": Ask("/json", headers=EVENTSOURCE),
    "head of json": Ask("/json", "HEAD"),
    "a method that is not allowed": Ask("/json", "DELETE"),
    "file": Ask("/file"),
    "range of a file": Ask("/file", headers={"range": "bytes=1000-1999"}),
    "upload": Ask("/upload", "POST", body=UPLOAD),
    "missing": Ask("/missing"),
    "missing for an EventSource": Ask("/missing", headers=EVENTSOURCE),
    "boom": Ask("/boom?key=boom"),
    "boom for an EventSource": Ask("/boom?key=boom-eventsource", headers=EVENTSOURCE),
    "background": Ask("/background?key=background"),
    "lifespan": Ask("/state?key=lifespan"),
}
"""Responses that are no streams: they are the same, including all headers."""

PLAIN = {
    "slow": Ask("/stream?key=slow&n=3&pause=0.4"),
    "slow for a library": Ask("/stream?key=slow-library&n=3&pause=0.4", headers=LIBRARY),
    "quick": Ask("/stream?key=quick&n=200&pause=0"),
    "posted": Ask("/stream?key=posted&n=2&pause=0.4", "POST", body=UPLOAD),
    "empty": Ask("/stream?key=empty&n=0&pause=0"),
    "failing": Ask("/stream?key=failing&n=2&pause=0.01&boom=1"),
    "failing at once": Ask("/stream?key=failing-at-once&n=0&pause=0&boom=1"),
    "head of a stream": Ask("/stream?key=head&n=1&pause=0", "HEAD"),
}
"""Streams for clients other than `EventSource`: the app's bytes, and comments."""

NATIVE = {
    "slow": Ask("/stream?key=es-slow&n=3&pause=0.4", headers=EVENTSOURCE),
    "quick": Ask("/stream?key=es-quick&n=200&pause=0", headers=EVENTSOURCE),
    "empty": Ask("/stream?key=es-empty&n=0&pause=0", headers=EVENTSOURCE),
    "failing": Ask("/stream?key=es-failing&n=2&pause=0.01&boom=1", headers=EVENTSOURCE),
}
"""Streams for an `EventSource`."""

ENDLESS = {
    "lines": Ask("/lines?key=lines"),
    "events": Ask("/stream?key=events&n=1000000000&pause=0.05"),
    "silent events": Ask("/stream?key=silent&n=2&pause=1000"),
    "events for an EventSource": Ask(
        "/stream?key=es-events&n=1000000000&pause=0.05", headers=EVENTSOURCE
    ),
    "silent events for an EventSource": Ask(
        "/stream?key=es-silent&n=2&pause=1000", headers=EVENTSOURCE
    ),
}
"""Responses that end only if the client disconnects."""

RESET = (
    Ask("/stream?key=reset&n=1000000000&pause=0.05", headers=EVENTSOURCE),
    Ask("/stream?key=not-reset&n=3&pause=0.4"),
)
"""Two streams on one connection, of which the first is reset."""

OURS = (
    "x-trace-id",
    "x-stream-id",
    "x-stream-max-seconds",
    "x-heartbeat-interval",
    "x-silence-threshold",
    "x-accel-buffering",
)
UNMARKED = ("x-trace-id", "x-stream-id", "x-accel-buffering", "cache-control")
CLOCKS = ("date", "expires")
ADJUSTED = ("cache-control", "connection", "content-length")


@dataclass
class Observed:
    """All responses of one server."""

    others: dict[str, Answer] = field(default_factory=dict)
    plain: dict[str, Answer] = field(default_factory=dict)
    native: dict[str, Answer] = field(default_factory=dict)
    left: dict[str, Answer] = field(default_factory=dict)
    reset: tuple[list[str], bytes] = ([], b"")
    websocket: list[str] = field(default_factory=list)
    log: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class Pair:
    """All responses: with the middleware and its mark, with the middleware alone, without it."""

    row: Row
    framework: str
    ours: Observed
    unmarked: Observed
    bare: Observed


async def observe(server: Server, row: Row) -> Observed:
    """Send all requests at once."""
    client = RecordingClient(server, http2=row.http2)
    observed = Observed()

    async def keep(name: str, answers: dict[str, Answer], answer: Awaitable[Answer]) -> None:
        answers[name] = await answer

    async with asyncio.TaskGroup() as tasks:
        for asks, answers in (
            (OTHERS, observed.others),
            (PLAIN, observed.plain),
            (NATIVE, observed.native),
        ):
            for name, ask in asks.items():
                tasks.create_task(keep(name, answers, client.ask(ask)))
        for name, ask in ENDLESS.items():
            enough = b"0" if "silent" in name else b"1"
            leaving = client.ask(ask, leave_after=enough)
            tasks.create_task(keep(name, observed.left, leaving))
        if row.http2:
            resetting = tasks.create_task(client.reset(*RESET))
        else:
            talking = tasks.create_task(client.talk("echo"))
    if row.http2:
        observed.reset = resetting.result()
    else:
        observed.websocket = talking.result()
    return observed


def run_all(row: Row, framework: str, directory: Path) -> Pair:
    """Run the app in all three ways at the same time, and observe them."""
    file = directory / "file.bin"
    file.write_bytes(bytes(range(256)) * 400)
    environ = {
        "MATRIX_FILE": str(file),
        "SSE_HEARTBEAT_INTERVAL": str(HEARTBEAT_SECONDS),
        "SSE_LINGER_SECONDS": "0",
        "PYTHONHASHSEED": "0",  # some frameworks list allowed methods in the order of a set
    }

    def run(name: str, settings: dict[str, str]) -> Observed:
        (directory / name).mkdir()
        app = f"tests.e2e.matrix.on_{framework}:watched"
        with serving(row.server, app, directory / name, environ | settings) as server:
            observed = asyncio.run(observe(server, row))
        observed.log = server.log_text()
        observed.exit_code = server.process.returncode
        return observed

    ways: tuple[dict[str, str], ...] = ({}, {"MATRIX_UNMARKED": "1"}, {"MATRIX_WITHOUT_US": "1"})
    with ThreadPoolExecutor(len(ways)) as threads:
        ours, unmarked, bare = threads.map(run, ("marked", "unmarked", "without"), ways)
    return Pair(row, framework, ours, unmarked, bare)


def missing_modules(row: Row, framework: str) -> list[str]:
    """Return the missing modules."""
    needed = {framework, row.server.partition("-")[0]} - {"plain_asgi"}
    needed |= {"uvicorn_worker"} if row.server == "gunicorn-uvicorn" else set()
    needed |= {"h2"} if row.http2 else {"websockets"}
    return [name for name in sorted(needed) if importlib.util.find_spec(name) is None]
