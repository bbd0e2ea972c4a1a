"""The servers and frameworks of the matrix, the requests, and what the servers respond to them.

Each server runs three times with the apps of all frameworks: with the middleware and its mark, with
the middleware alone, and without it. All requests are sent to all of them at once. Then each server
gets SIGTERM, with open streams of each framework.
"""

import asyncio
import importlib.util
import signal
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sse_middleware import EventParser
from tests.e2e.matrix.notes import read
from tests.e2e.matrix.recording_client import Answer, Ask, RecordingClient
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import Server, serving
from tests.support.waiting import HANG_SECONDS, until

LIBRARY = EVENTSOURCE | {"user-agent": "python-requests/2.32"}
"""The headers of sseclient: those of a browser, but for the name."""
HEARTBEAT_SECONDS = 0.3


@dataclass(frozen=True)
class Row:
    """A server and the version of HTTP.

    Attributes:
        server: its name in `tests.support.servers`.
        http2: whether the requests are those of HTTP/2; the process of a server takes both.
        workers: the number of processes that share the requests.
    """

    server: str
    http2: bool = False
    workers: int = 1

    @property
    def process(self) -> "Row":
        """The row whose processes this one shares."""
        return replace(self, http2=False)


ROWS = {
    "uvicorn-httptools": Row("uvicorn-httptools"),
    "uvicorn-h11": Row("uvicorn-h11"),
    "uvicorn-workers": Row("uvicorn-httptools", workers=2),  # which share a Redis
    "hypercorn": Row("hypercorn"),
    "hypercorn-http2": Row("hypercorn", http2=True),  # without TLS, by prior knowledge
    "granian": Row("granian"),
    "granian-http2": Row("granian", http2=True),
    "gunicorn-asgi": Row("gunicorn-asgi"),
    "gunicorn-uvicorn": Row("gunicorn-uvicorn"),
}
CLIENT_FAILS = {ROWS["granian-http2"]: {"head of json"}}
"""Responses with which the client fails: granian sends the body of a HEAD in HTTP/2."""
UNREADABLE_AT_END = {ROWS["granian-http2"]}
"""Rows whose streams the client cannot read after the server has announced its end: granian sends
GOAWAY and a PING, and h2 refuses everything after the first."""
AT_ONCE = 2
"""The number of servers that run at a time, each in three ways; they mostly wait."""

MOST_REQUESTS = 10
"""The limit of the requests for one stream, for a client that returns to it."""
REQUESTS_AT_ONCE = 32
"""The number of requests to a server at a time."""

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

CUT = Ask("/kept?key=cut&n=12&pause=0.1", headers=EVENTSOURCE)
"""A stream that is cut, and to which its client returns; with the mark only."""

OPEN_AT_END = {
    "marked": Ask("/stream?key=end&n=1000000000&pause=0.05", headers=EVENTSOURCE),
    "unmarked": Ask("/stream?key=end&n=30&pause=0.05", headers=EVENTSOURCE),
    "without": Ask("/stream?key=end&n=30&pause=0.05", headers=EVENTSOURCE),
}
"""The stream that is open when the server gets SIGTERM. Without the mark servers wait for it."""

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
    """All responses of one server and framework.

    Attributes:
        cut: the part of a stream before its client has left.
        resumed: the response to the client when it has returned.
        at_end: the stream that was open when the server got SIGTERM.
        log: the log of the server, of all frameworks, until then.
        log_of_end: the log after that.
    """

    others: dict[str, Answer] = field(default_factory=dict)
    plain: dict[str, Answer] = field(default_factory=dict)
    native: dict[str, Answer] = field(default_factory=dict)
    left: dict[str, Answer] = field(default_factory=dict)
    reset: tuple[list[str], bytes] = ([], b"")
    websocket: list[str] = field(default_factory=list)
    cut: Answer = field(default_factory=Answer)
    resumed: Answer = field(default_factory=Answer)
    at_end: Answer = field(default_factory=Answer)
    log: str = ""
    log_of_end: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class Pair:
    """All responses: with the middleware and its mark, with the middleware alone, without it."""

    row: Row
    framework: str
    ours: Observed
    unmarked: Observed
    bare: Observed


class _Observer:
    """Send all requests of one row and framework."""

    def __init__(
        self, server: Server, notes: Path, row_name: str, framework: str, few: asyncio.Semaphore
    ) -> None:
        self.observed = Observed()
        self.row = ROWS[row_name]
        self._framework = framework
        self._few = few
        self._prefix = f"{row_name}.{framework}."
        headers = {"x-framework": framework}
        self._client = RecordingClient(server, notes, http2=self.row.http2, headers=headers)

    def _own(self, ask: Ask) -> Ask:
        """Return a request whose key no other row and framework has."""
        return replace(ask, path=ask.path.replace("key=", f"key={self._prefix}"))

    async def observe(self, *, is_marked: bool) -> None:
        """Send all requests, many at once."""
        client, observed = self._client, self.observed

        async def keep(name: str, answers: dict[str, Answer], answer: Awaitable[Answer]) -> None:
            async with self._few:
                answers[name] = await answer

        started = Ask(f"/state?key={self._framework}.lifespan")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep("lifespan", observed.others, client.ask(started, requests=0)))
            for asks, answers in (
                (OTHERS, observed.others),
                (PLAIN, observed.plain),
                (NATIVE, observed.native),
            ):
                for name, ask in asks.items():
                    tasks.create_task(keep(name, answers, client.ask(self._own(ask))))
            for name, ask in ENDLESS.items():
                enough = b"0" if "silent" in name else b"1"
                leaving = client.ask(self._own(ask), leave_after=enough)
                tasks.create_task(keep(name, observed.left, leaving))
            if is_marked:
                tasks.create_task(self._cut_and_return())
            if self.row.http2:
                resetting = tasks.create_task(client.reset(*map(self._own, RESET)))
            else:
                talking = tasks.create_task(client.talk(f"{self._prefix}echo"))
        if self.row.http2:
            observed.reset = resetting.result()
        else:
            observed.websocket = talking.result()

    async def _cut_and_return(self) -> None:
        ask = self._own(CUT)
        cut = await self._client.ask(ask, leave_after=b"data: 1", requests=0)
        parser = EventParser()
        parser.feed(cut.body)
        self.observed.cut = cut
        resumed = Answer()
        for requests in range(2, MOST_REQUESTS):  # a slow Redis sends a client back once more
            headers = ask.headers | {"last-event-id": parser.last_event_id}
            answer = await self._client.ask(replace(ask, headers=headers), requests=requests)
            parser.feed(answer.body)
            answer.body = resumed.body + answer.body
            resumed = answer
            if "complete" in resumed.names or answer.error:
                break
        self.observed.resumed = resumed

    async def stay(self, ask: Ask) -> None:
        """Read a stream to its end, and store the part of it that has arrived meanwhile."""
        await self._client.ask(self._own(ask), requests=0, answer=self.observed.at_end)


async def _observe(
    server: Server, notes: Path, way: str, pairs: Sequence[tuple[str, str]]
) -> dict[str, Observed]:
    """Send the requests of all pairs at once; then stop the server, which has open streams."""
    few = asyncio.Semaphore(REQUESTS_AT_ONCE)
    observers = {f"{row}/{name}": _Observer(server, notes, row, name, few) for row, name in pairs}
    workers = ROWS[pairs[0][0]].workers
    await RecordingClient(server, notes).until_all_run(workers)
    async with asyncio.TaskGroup() as tasks:
        for observer in observers.values():
            tasks.create_task(observer.observe(is_marked=way == "marked"))
    found = {name: observer.observed for name, observer in observers.items()}
    log = server.log_text()
    async with asyncio.TaskGroup() as tasks:
        staying = [one for one in observers.values() if one.row not in UNREADABLE_AT_END]
        for observer in staying:
            tasks.create_task(observer.stay(OPEN_AT_END[way]))
        await until(lambda: all(one.observed.at_end.body for one in staying), "a stream is empty")
        server.process.send_signal(signal.SIGTERM)
    exit_code = await asyncio.to_thread(server.process.wait, HANG_SECONDS)
    for name, one in found.items():
        key = f"{name.replace('/', '.')}.end"
        one.at_end.noted = read(notes, key)
        one.log, one.log_of_end = log, server.log_text().removeprefix(log)
        one.exit_code = exit_code
    return found


def run_all(pairs: Sequence[tuple[str, str]], directory: Path) -> dict[str, Pair]:
    """Run one server in all three ways at the same time, and observe it.

    Args:
        pairs: rows of this server with frameworks, by their names.
        directory: for files of the run.
    """
    row = ROWS[pairs[0][0]]
    file = directory / "file.bin"
    file.write_bytes(bytes(range(256)) * 400)
    environ = {
        "MATRIX_FILE": str(file),
        "MATRIX_FRAMEWORKS": " ".join(dict.fromkeys(framework for _, framework in pairs)),
        "SSE_HEARTBEAT_INTERVAL": str(HEARTBEAT_SECONDS),
        "SSE_LINGER_SECONDS": "0",
        "PYTHONHASHSEED": "0",  # some frameworks list allowed methods in the order of a set
    }
    more: tuple[str, ...] = ("--workers", str(row.workers)) if row.workers > 1 else ()
    if row.server == "hypercorn":
        # After this time, it closes the connection of a stream in HTTP/2 whose app has failed, and
        # also connections that wait for their turn, which on a busy machine takes over 5 s.
        more += ("--keep-alive", "15")

    def run(way: str, settings: dict[str, str]) -> dict[str, Observed]:
        notes = directory / way / "notes"
        notes.mkdir(parents=True)
        own = environ | settings | {"MATRIX_NOTES": str(notes)}
        app = "tests.e2e.matrix.every_framework:app"
        with serving(row.server, app, directory / way, own, *more) as server:
            return asyncio.run(_observe(server, notes, way, pairs))

    with _shared_store(row, directory) as store, ThreadPoolExecutor(3) as threads:
        ways = {
            "marked": {"SSE_DRAIN_SECONDS": "1", **store},
            "unmarked": {"MATRIX_UNMARKED": "1"},
            "without": {"MATRIX_WITHOUT_US": "1"},
        }
        ours, unmarked, bare = threads.map(run, ways.keys(), ways.values())
    return {
        f"{row_name}/{name}": Pair(
            ROWS[row_name],
            name,
            *(found[f"{row_name}/{name}"] for found in (ours, unmarked, bare)),
        )
        for row_name, name in pairs
    }


@contextmanager
def _shared_store(row: Row, directory: Path) -> Iterator[dict[str, str]]:
    """Run a Redis if a client may return to another worker, and return the setting."""
    if row.workers == 1:
        yield {}
        return
    from tests.support.redis_server import RedisServer  # noqa: PLC0415 - needs an extra

    with RedisServer(directory) as redis:
        yield {"SSE_REDIS_URL": redis.url}


def missing_modules(row: Row, framework: str) -> list[str]:
    """Return the missing modules."""
    needed = {framework, row.server.partition("-")[0]} - {"plain_asgi"}
    needed |= {"uvicorn_worker"} if row.server == "gunicorn-uvicorn" else set()
    needed |= {"h2"} if row.http2 else {"websockets"}
    needed |= {"redis"} if row.workers > 1 else set()
    return [name for name in sorted(needed) if importlib.util.find_spec(name) is None]
