"""Every server with every framework: the middleware changes streams only, as it is documented.

Each pair of server and framework runs twice, with the middleware and without it. All requests are
sent to both at once, the responses are kept, and both are stopped; the tests compare.
"""

import asyncio
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Awaitable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import AnyStr

import pytest

from tests.e2e.matrix.recording_client import Answer, Ask, RecordingClient
from tests.support import needs
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
    """All responses with the middleware and without it."""

    row: Row
    framework: str
    ours: Observed
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


def run_both(row: Row, framework: str, directory: Path) -> Pair:
    """Run the app with the middleware and without it at the same time, and observe both."""
    file = directory / "file.bin"
    file.write_bytes(bytes(range(256)) * 400)
    environ = {
        "MATRIX_FILE": str(file),
        "SSE_HEARTBEAT_INTERVAL": str(HEARTBEAT_SECONDS),
        "SSE_LINGER_SECONDS": "0",
        "PYTHONHASHSEED": "0",  # some frameworks list allowed methods in the order of a set
    }

    def run(name: str, without_us: str) -> Observed:
        (directory / name).mkdir()
        app = f"tests.e2e.matrix.on_{framework}:watched"
        with serving(
            row.server, app, directory / name, {**environ, "MATRIX_WITHOUT_US": without_us}
        ) as server:
            observed = asyncio.run(observe(server, row))
        observed.log = server.log_text()
        observed.exit_code = server.process.returncode
        return observed

    with ThreadPoolExecutor(2) as threads:
        ours, bare = threads.map(run, ("with", "without"), ("", "1"))
    return Pair(row, framework, ours, bare)


def missing_modules(row: Row, framework: str) -> list[str]:
    """Return the missing modules."""
    needed = {framework, row.server.partition("-")[0]} - {"plain_asgi"}
    needed |= {"h2"} if row.http2 else {"websockets"}
    return [name for name in sorted(needed) if importlib.util.find_spec(name) is None]


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Pair]]]:
    """Run the pairs of the selected tests, a few ahead of the tests."""
    selected: dict[str, None] = dict.fromkeys(
        str(item.callspec.params["pair"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "pair" in item.fixturenames
    )
    threads = ThreadPoolExecutor(AT_ONCE)
    futures = {}
    for name in selected:
        row_name, _, framework = name.partition("/")
        row = ROWS[row_name]
        if not missing_modules(row, framework):
            directory = tmp_path_factory.mktemp("matrix")
            futures[name] = threads.submit(run_both, row, framework, directory)
    yield futures
    threads.shutdown(cancel_futures=True)


@pytest.fixture(scope="module", params=[f"{row}/{name}" for row in ROWS for name in FRAMEWORKS])
def pair(request: pytest.FixtureRequest, runs: dict[str, Future[Pair]]) -> Pair:
    row, _, framework = request.param.partition("/")
    if missing := missing_modules(ROWS[row], framework):
        needs.missing(f"not installed: {', '.join(missing)}")
    return runs[request.param].result()


def headers_of(answer: Answer, *without: str) -> list[tuple[str, str]]:
    return [(name, value) for name, value in answer.headers if name not in {*CLOCKS, *without}]


def same_unless_reset(pair: Pair, name: str, ours: AnyStr, bare: AnyStr) -> bool:
    """Return whether two responses are the same.

    After an exception of the app, granian resets a stream of HTTP/2, and may discard what it has
    not sent yet.
    """
    if pair.row == ROWS["granian-http2"] and name == "failing":
        return ours.startswith(bare) or bare.startswith(ours)
    return ours == bare


def without_comments(body: bytes) -> bytes:
    return re.sub(rb": heartbeat(\r?\n){1,2}", b"", body)


@pytest.mark.parametrize("name", OTHERS)
def test_a_response_that_is_no_stream_is_the_same(pair: Pair, name: str) -> None:
    ours, bare = pair.ours.others[name], pair.bare.others[name]
    if name in CLIENT_FAILS.get(pair.row, ()):
        assert ours.error == bare.error != ""
        return
    assert ours.http_version == ("HTTP/2" if pair.row.http2 else "HTTP/1.1")
    assert headers_of(ours) == headers_of(bare)
    assert ours.body == bare.body
    assert (ours.status, ours.error, ours.noted) == (bare.status, bare.error, bare.noted)


def test_the_app_responds_as_intended(pair: Pair) -> None:
    others = pair.bare.others
    failed = {name for name, answer in others.items() if answer.error}
    assert failed == CLIENT_FAILS.get(pair.row, set())
    assert json.loads(others["json"].body) == {"answer": 42}
    assert len(others["file"].body) == 102400
    assert others["upload"].body.startswith(b"1048576 ")
    assert others["missing"].status == 404
    assert others["boom"].status == 500
    assert others["background"].noted[0] == "background"
    started = [] if pair.framework == "django" else ["started"]
    assert json.loads(others["lifespan"].body) == started


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_stream_is_the_same_except_for_comments(pair: Pair, name: str) -> None:
    ours, bare = pair.ours.plain[name], pair.bare.plain[name]
    assert same_unless_reset(pair, name, without_comments(ours.body), bare.body)
    assert (ours.status, ours.noted) == (bare.status, bare.noted)
    if pair.framework == "fastapi" and name == "failing":
        # FastAPI ends it cleanly or cuts it, without the middleware too: the end of the response
        # races with the cancellation by its failed task group.
        assert {ours.error, bare.error} <= {"", "RemoteProtocolError"}
    else:
        assert ours.error == bare.error
    if name in {"slow", "slow for a library", "posted"}:
        end = b"\r\n" if b"\r\n" in bare.body else b"\n"
        assert b": heartbeat" + end + end in ours.body


@pytest.mark.parametrize("name", PLAIN)
def test_a_stream_has_the_apps_headers_and_ours(pair: Pair, name: str) -> None:
    ours, bare = pair.ours.plain[name], pair.bare.plain[name]
    framing: tuple[str, ...] = ()
    if name == "empty" and pair.row.server == "granian":
        # granian declares an empty body as chunked or as 0 bytes, without the middleware too.
        framing = ("transfer-encoding", "content-length")
    ignored = (*OURS, *ADJUSTED, *framing)
    assert headers_of(ours, *ignored) == headers_of(bare, *ignored)
    if name == "head of a stream" or bare.status == 500:
        assert headers_of(ours) == headers_of(bare)
        return
    assert [header for header in OURS if ours.header(header) is None] == []
    assert ours.header("x-heartbeat-interval") == str(HEARTBEAT_SECONDS)
    assert "no-transform" in str(ours.header("cache-control"))
    assert ours.header("x-accel-buffering") == "no"
    assert framing or ours.header("content-length") is None
    assert ours.header("connection") == bare.header("connection")


@pytest.mark.parametrize("name", NATIVE)
def test_an_eventsource_receives_all_events_between_start_and_end(pair: Pair, name: str) -> None:
    ours, bare = pair.ours.native[name], pair.bare.native[name]
    last = "error" if "failing" in name else "complete"
    assert (ours.names[0], ours.names[-1]) == ("start", last)
    assert set(ours.names[1:-1]) <= {"message", "heartbeat"}
    assert same_unless_reset(pair, name, "".join(ours.messages), "".join(bare.messages))
    assert len(ours.messages) == {"slow": 3, "quick": 200, "empty": 0, "failing": 2}[name]
    assert (ours.status, ours.error, ours.noted) == (bare.status, "", bare.noted)
    if name == "slow":
        beats = ours.names.count("heartbeat")
        assert 1 <= beats <= ours.ended_after / HEARTBEAT_SECONDS + 1
    if last == "complete":
        assert json.loads(ours.events[-1].data)["reason"] == "finished"
    assert b"swordfish" not in ours.body


@pytest.mark.parametrize("name", ENDLESS)
def test_an_app_stops_after_its_client_has_left_as_without_us(pair: Pair, name: str) -> None:
    ours, bare = pair.ours.left[name], pair.bare.left[name]
    assert (ours.status, ours.error) == (bare.status, bare.error) == (200, "")
    assert ways_out(ours.noted) == ways_out(bare.noted)
    assert "finally" in bare.noted


def test_a_reset_stream_stops_and_the_other_one_continues(pair: Pair) -> None:
    if not pair.row.http2:
        pytest.skip("HTTP/1.1 has one stream a connection")
    (ours, ours_whole), (bare, bare_whole) = pair.ours.reset, pair.bare.reset
    assert ways_out(ours) == ways_out(bare)
    assert "finally" in bare
    assert without_comments(ours_whole) == bare_whole
    assert bare_whole.count(b"data: ") == 3


def ways_out(noted: list[str]) -> list[str]:
    """Return the ways out that were taken after a client had left, in any order.

    Two of them vary without the middleware too: a generator is cancelled at its `await` or, if the
    app does not wait there, closed at its `yield` by the collector; and FastAPI closes its queue
    one turn of the event loop before it cancels the writer, which may then fail.
    """
    same = {"closed": "cancelled", "app raised ExceptionGroup": "app returned"}
    return sorted({same.get(way, way) for way in noted})


def test_a_websocket_is_the_same(pair: Pair) -> None:
    if pair.row.http2:
        pytest.skip("websockets supports HTTP/1.1 only")
    assert pair.ours.websocket == pair.bare.websocket
    if pair.framework == "django":
        assert len(pair.bare.websocket) == 1  # refused: get_asgi_application takes HTTP only
    else:
        assert pair.bare.websocket[:2] == ["one", "two" * 10_000]


def test_the_log_has_the_same_errors(pair: Pair) -> None:
    assert errors_in(pair.ours.log) == errors_in(pair.bare.log)


def test_the_server_stops_as_without_us(pair: Pair) -> None:
    assert pair.ours.exit_code == pair.bare.exit_code
    assert ("lifespan: stopped" in pair.ours.log) == ("lifespan: stopped" in pair.bare.log)


def errors_in(log: str) -> Counter[str]:
    """Count the last lines of tracebacks and the complaints of the interpreter."""
    lines = re.findall(
        r"^(?:\s*\| )?(?:[\w.]+(?:Error|Exception|Warning)\b|Task )[^\n]*", log, re.MULTILINE
    )
    # For the error left out, see `ways_out`.
    return Counter(line.strip() for line in lines if "BrokenResourceError" not in line)
