"""Observers that raise, because of the log handlers, record factories and metrics of an app."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware
from sse_middleware._once import OncePerProcess
from sse_middleware.observability import metrics, observer
from sse_middleware.observability.logs import StreamLog
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running, stream_of
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio

STREAM = stream_of(b"data: 1\n\n")
BOTH = pytest.mark.parametrize("make", [SSEMiddleware, marking], ids=["unmarked", "marked"])
FIELDS = ("trace_id", "stream_id", "route", "family", "outcome", "chunks", "reason")


@pytest.fixture(autouse=True)
def forget_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "_failed", OncePerProcess(set))


@pytest.fixture
def own_fields() -> Iterator[None]:
    """Have the app's log record factory set fields of the names that ours once had."""
    before = logging.getLogRecordFactory()

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        vars(record).update(dict.fromkeys(FIELDS, "the app's"))
        return record

    logging.setLogRecordFactory(make)
    yield
    logging.setLogRecordFactory(before)


@BOTH
async def test_fields_of_the_apps_log_record_factory_collide_with_none_of_ours(
    make: Callable[..., SSEMiddleware], own_fields: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    returned: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await STREAM(scope, receive, send)
        returned.append(True)  # a framework runs its background tasks here

    exchange = await handle(make(app), headers=EVENTSOURCE)
    assert exchange.ended
    assert returned == [True]
    (record,) = [r for r in caplog.records if r.name == "sse_middleware.stream"]
    logged: Any = record
    assert logged.trace_id == "the app's"
    assert logged.sse["outcome"] == "finished"
    assert logged.sse["trace_id"] == exchange.headers[b"x-trace-id"].decode()


async def test_a_rejection_is_logged_beside_the_fields_of_the_app(
    own_fields: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = SSEMiddleware(stream_of(b"data: 1\n\n", pause=9), max_streams=1)
    headers = [(b"accept", b"text/event-stream")]
    async with running(app, Exchange(http_scope(headers=headers))) as first:
        await first.until_count(1)
        assert (await handle(app, headers=headers)).status == 503
    assert [vars(r)["sse"]["reason"] for r in caplog.records if "rejected" in r.message] == [
        "process"
    ]


class FullDisk:
    """A value of a metric in a file, on a disk that is full."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def inc(self, *_: Any) -> None:
        raise OSError(28, "No space left on device")

    set = set_exemplar = inc

    def get(self) -> float:
        return 0.0

    get_exemplar = get


@BOTH
async def test_metrics_that_fail_affect_neither_the_app_nor_the_log(
    make: Callable[..., SSEMiddleware],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("prometheus_client.values.ValueClass", FullDisk)
    monkeypatch.setattr("prometheus_client.metrics.values.ValueClass", FullDisk)
    caplog.set_level(logging.INFO)
    app = make(STREAM, registry=CollectorRegistry())
    for _ in range(3):
        exchange = await handle(app, headers=EVENTSOURCE)
        assert exchange.ended
        assert b"data: 1\n" in exchange.body
    logged = [r for r in caplog.records if r.name == "sse_middleware.stream"]
    assert len(logged) == 3
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len([text for text in warnings if "No space left on device" in text]) == len(warnings)
    assert {text.partition(" ")[0] for text in warnings} == {"Metrics.opened", "Metrics.ended"}
    assert len(warnings) == 2


async def test_a_log_that_cannot_be_written_affects_no_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make(*_: Any, **__: Any) -> logging.LogRecord:
        raise RuntimeError("the factory fails for each record")

    registry = CollectorRegistry()
    logger = logging.getLogger("sse_middleware.stream")
    monkeypatch.setattr(logger, "makeRecord", make)
    monkeypatch.setattr(logging.getLogger("sse_middleware"), "makeRecord", make)
    monkeypatch.setattr(logger, "level", logging.INFO)
    app = marking(STREAM, registry=registry)
    assert (await handle(app, headers=EVENTSOURCE)).names[-1] == "complete"
    assert registry.get_sample_value("sse_streams_active") == 0


@pytest.mark.parametrize("observing", [StreamLog, metrics.Metrics])
def test_each_method_of_an_observer_is_guarded(observing: type) -> None:
    for name in vars(observer.Observer):
        if not name.startswith("_"):
            assert hasattr(getattr(observing, name), "__wrapped__"), name
