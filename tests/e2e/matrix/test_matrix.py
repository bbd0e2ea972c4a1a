"""Every server with every framework: the middleware changes streams only, as it is documented.

The responses of each server with all frameworks are kept, and the servers are stopped; the tests
compare them for each pair. `observing.py` has the requests.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import AnyStr

import pytest

from tests.e2e.matrix.observing import (
    ADJUSTED,
    AT_ONCE,
    CLIENT_FAILS,
    CLOCKS,
    ENDLESS,
    FRAMEWORKS,
    HEARTBEAT_SECONDS,
    NATIVE,
    OTHERS,
    OURS,
    PLAIN,
    ROWS,
    UNMARKED,
    UNREADABLE_AT_END,
    Pair,
    Row,
    missing_modules,
    run_all,
)
from tests.e2e.matrix.recording_client import Answer
from tests.support import needs


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[dict[str, Pair]]]]:
    """Run the servers of the selected tests, one ahead of the tests."""
    selected: dict[str, None] = dict.fromkeys(
        str(item.callspec.params["pair"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "pair" in item.fixturenames
    )
    by_process: dict[Row, list[tuple[str, str]]] = {}
    for name in selected:
        row, _, framework = name.partition("/")
        if not missing_modules(ROWS[row], framework):
            by_process.setdefault(ROWS[row].process, []).append((row, framework))
    threads = ThreadPoolExecutor(AT_ONCE)
    futures = {}
    for pairs in by_process.values():
        run = threads.submit(run_all, pairs, tmp_path_factory.mktemp("matrix"))
        futures.update({f"{row}/{framework}": run for row, framework in pairs})
    yield futures
    threads.shutdown(cancel_futures=True)


@pytest.fixture(scope="module", params=[f"{row}/{name}" for row in ROWS for name in FRAMEWORKS])
def pair(request: pytest.FixtureRequest, runs: dict[str, Future[dict[str, Pair]]]) -> Pair:
    row, _, framework = request.param.partition("/")
    if missing := missing_modules(ROWS[row], framework):
        needs.missing(f"not installed: {', '.join(missing)}")
    return runs[request.param].result()[request.param]


def headers_of(answer: Answer, *without: str) -> list[tuple[str, str]]:
    return [(name, value) for name, value in answer.headers if name not in {*CLOCKS, *without}]


def same_unless_reset(pair: Pair, name: str, ours: AnyStr, bare: AnyStr) -> bool:
    """Return whether two responses are the same.

    After an exception of the app, granian resets a stream of HTTP/2, and may discard what it has
    not sent yet.
    """
    if pair.row == ROWS["granian-http2"] and name.startswith("failing"):
        return ours.startswith(bare) or bare.startswith(ours)
    return ours == bare


def loses_its_head(pair: Pair, ours: Answer, bare: Answer) -> bool:
    """Return whether a server has closed a connection without the head of its response.

    In gunicorn's ASGI worker, an exception at once races with the head, without the middleware too.
    Then the steps of the app have to be the same, and there is nothing else to compare.
    """
    if pair.row.server != "gunicorn-asgi" or ours.status == bare.status:
        return False
    assert {ours.status, bare.status} == {0, 200}
    assert ours.noted == bare.noted
    return True


def without_comments(body: bytes) -> bytes:
    return re.sub(rb": heartbeat(\r?\n){1,2}", b"", body)


@pytest.mark.parametrize("name", [*OTHERS, "lifespan"])
def test_a_response_that_is_no_stream_is_the_same(pair: Pair, name: str) -> None:
    bare = pair.bare.others[name]
    for ours in (pair.ours.others[name], pair.unmarked.others[name]):
        if name in CLIENT_FAILS.get(pair.row, ()):
            assert ours.error == bare.error != ""
            continue
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
    started = [] if pair.framework == "django" else ["started"] * pair.row.workers
    assert json.loads(others["lifespan"].body) == started


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_stream_is_the_same_except_for_comments(pair: Pair, name: str) -> None:
    ours, bare = pair.ours.plain[name], pair.bare.plain[name]
    if name == "failing at once" and loses_its_head(pair, ours, bare):
        return
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


@pytest.mark.parametrize("name", [*PLAIN, *(f"{name} for an EventSource" for name in NATIVE)])
def test_without_the_mark_a_stream_has_more_headers_and_nothing_else(pair: Pair, name: str) -> None:
    unmarked, bare = (
        {
            **observed.plain,
            **{f"{key} for an EventSource": answer for key, answer in observed.native.items()},
        }[name]
        for observed in (pair.unmarked, pair.bare)
    )
    if name == "failing at once" and loses_its_head(pair, unmarked, bare):
        return
    assert same_unless_reset(pair, name, unmarked.body, bare.body)
    assert (unmarked.status, unmarked.noted) == (bare.status, bare.noted)
    is_stream = not (name == "head of a stream" or bare.status != 200)
    ignored = (*UNMARKED, *framing_of(pair, name)) if is_stream else ()
    assert headers_of(unmarked, *ignored) == headers_of(bare, *ignored)
    if is_stream:
        assert [header for header in UNMARKED if unmarked.header(header) is None] == []
        added = set(dict(unmarked.headers)) - set(dict(bare.headers))
        assert added - {*framing_of(pair, name)} <= {*UNMARKED}


def framing_of(pair: Pair, name: str) -> tuple[str, ...]:
    """Return the headers of the framing, if they vary."""
    if name.startswith("empty") and pair.row.server == "granian":
        # granian declares an empty body as chunked or as 0 bytes, without the middleware too.
        return ("transfer-encoding", "content-length")
    return ()


@pytest.mark.parametrize("name", PLAIN)
def test_a_stream_has_the_apps_headers_and_ours(pair: Pair, name: str) -> None:
    ours, bare = pair.ours.plain[name], pair.bare.plain[name]
    if name == "failing at once" and loses_its_head(pair, ours, bare):
        return
    framing = framing_of(pair, name)
    ignored = (*OURS, *ADJUSTED, *framing)
    assert headers_of(ours, *ignored) == headers_of(bare, *ignored)
    if name == "head of a stream" or bare.status != 200:  # 500, or no response at all
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
    bare = pair.bare.left[name]
    assert "finally" in bare.noted
    for ours in (pair.ours.left[name], pair.unmarked.left[name]):
        assert (ours.status, ours.error) == (bare.status, bare.error) == (200, "")
        if pair.row.server != "gunicorn-asgi" or ours is pair.unmarked.left[name]:
            assert ways_out(ours.noted) == ways_out(bare.noted)
            continue
        # This server cancels the app a moment after the disconnect. A marked one has ended by then.
        same = {"app raised CancelledError": "app returned"}
        noted = [[same.get(way, way) for way in one.noted] for one in (ours, bare)]
        assert ways_out(noted[0]) == ways_out(noted[1])


def test_a_reset_stream_stops_and_the_other_one_continues(pair: Pair) -> None:
    if not pair.row.http2:
        pytest.skip("HTTP/1.1 has one stream a connection")
    bare, bare_whole = pair.bare.reset
    assert "finally" in bare
    assert bare_whole.count(b"data: ") == 3
    for ours, ours_whole in (pair.ours.reset, pair.unmarked.reset):
        assert ways_out(ours) == ways_out(bare)
        assert without_comments(ours_whole) == bare_whole


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
    assert pair.ours.websocket == pair.unmarked.websocket == pair.bare.websocket
    if pair.framework == "django":
        assert len(pair.bare.websocket) == 1  # refused: get_asgi_application takes HTTP only
    else:
        assert pair.bare.websocket[:2] == ["one", "two" * 10_000]


def test_the_log_has_the_same_errors(pair: Pair) -> None:
    ours, unmarked, bare = (errors_in(one.log) for one in (pair.ours, pair.unmarked, pair.bare))
    if pair.row.server == "gunicorn-asgi":
        # It logs no exception after the end of a response, with which that of FastAPI races.
        assert kinds_of(ours) <= kinds_of(bare) == kinds_of(unmarked)
    else:
        assert ours == unmarked == bare


def test_a_marked_stream_that_is_cut_is_resumed_by_event_id(pair: Pair) -> None:
    cut, resumed = pair.ours.cut, pair.ours.resumed
    assert (resumed.status, resumed.error) == (200, "")
    assert (resumed.names[0], resumed.names[-1]) == ("start", "complete")
    assert json.loads(resumed.events[0].data)["resumed"] is True
    assert json.loads(resumed.events[-1].data)["reason"] == "finished"
    assert 0 < len(cut.messages) < 12
    assert [int(data) for data in cut.messages + resumed.messages] == list(range(12))
    assert resumed.noted.count("finally") == 1  # the app has run once, to its end
    assert resumed.noted.count("app returned") >= 2
    assert "cancelled" not in resumed.noted


def test_a_marked_stream_ends_in_order_at_sigterm(pair: Pair) -> None:
    if pair.row in UNREADABLE_AT_END:
        pytest.skip("h2 refuses what this server sends at its end")
    answer = pair.ours.at_end
    assert (answer.status, answer.error) == (200, "")
    assert answer.names[0] == "start"
    assert json.loads(answer.events[-1].data)["reason"] == "shutdown"
    assert [int(data) for data in answer.messages] == list(range(len(answer.messages)))
    # FastAPI's steps follow the response, and granian and uvicorn may end before the last of them.
    steps = {"background", "dependency"} if pair.framework == "fastapi" else {"finally"}
    assert steps & set(answer.noted)
    # FastAPI's task for pings may fail, and be logged, when its reader is gone.
    log = pair.ours.log_of_end
    assert "Traceback" not in log or "_keepalive_inserter" in log


def test_an_unmarked_stream_ends_at_sigterm_as_without_us(pair: Pair) -> None:
    if pair.row in UNREADABLE_AT_END:
        pytest.skip("h2 refuses what this server sends at its end")
    ours, bare = pair.unmarked.at_end, pair.bare.at_end
    assert (ours.status, ours.error, ours.body) == (bare.status, bare.error, bare.body)
    # The server may end before the steps that follow the response.
    assert "finally" in ours.noted
    assert "finally" in bare.noted


def test_the_server_stops_as_without_us(pair: Pair) -> None:
    bare = pair.bare
    stopped = f"{pair.framework}: stopped"
    for ours in (pair.ours, pair.unmarked):
        assert ours.exit_code == bare.exit_code
        assert (stopped in ours.log_of_end) == (stopped in bare.log_of_end)


def kinds_of(errors: Counter[str]) -> set[str]:
    """Return the errors without the names of the requests in them."""
    return {re.sub(r" of .*", "", line) for line in errors}


def errors_in(log: str) -> Counter[str]:
    """Count the last lines of tracebacks and the complaints of the interpreter."""
    lines = re.findall(
        r"^(?:\s*\| )?(?:[\w.]+(?:Error|Exception|Warning)\b|Task )[^\n]*", log, re.MULTILINE
    )
    # For the error left out, see `ways_out`.
    return Counter(line.strip() for line in lines if "BrokenResourceError" not in line)
