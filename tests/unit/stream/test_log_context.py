"""The trace id and the stream id on the log lines of the app."""

import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sse_middleware import StreamLogFilter, add_stream_context, current_stream
from tests.support.asgi import body, handle, stream_start
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio

logger = logging.getLogger("app")


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.addFilter(StreamLogFilter())
    handler.setFormatter(logging.Formatter("%(message)s|%(trace_id)s|%(stream_id)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield output
    logger.removeHandler(handler)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    logger.info("before", extra=scope.get("extra"))
    await send(stream_start())
    logger.info("after")
    await send(body(b"data: 1\n\n", more=False))


async def test_a_line_of_a_request_has_the_ids_of_its_stream(lines: io.StringIO) -> None:
    logger.info("outside")
    exchange = await handle(marking(app))
    trace_id = exchange.headers[b"x-trace-id"].decode()
    stream_id = exchange.headers[b"x-stream-id"].decode()
    assert lines.getvalue().splitlines() == [
        "outside||",
        f"before|{trace_id}|",
        f"after|{trace_id}|{stream_id}",
    ]


async def test_a_stream_id_that_the_handler_has_read_is_on_the_lines_before_the_start(
    lines: io.StringIO,
) -> None:
    async def reading(scope: Scope, receive: Receive, send: Send) -> None:
        assert current_stream().stream_id
        await app(scope, receive, send)

    exchange = await handle(marking(reading))
    stream_id = exchange.headers[b"x-stream-id"].decode()
    assert [line.split("|")[2] for line in lines.getvalue().splitlines()] == [stream_id] * 2


@pytest.mark.parametrize("value", ["", None, "mine"])
async def test_fields_of_a_factory_and_of_extra_are_kept(lines: io.StringIO, value: Any) -> None:
    usual = logging.getLogRecordFactory()

    def factory(*arguments: Any, **options: Any) -> logging.LogRecord:
        record = usual(*arguments, **options)
        record.trace_id = record.span_id = value
        return record

    logging.setLogRecordFactory(factory)
    try:
        exchange = await handle(marking(app))
    finally:
        logging.setLogRecordFactory(usual)
    trace_id = exchange.headers[b"x-trace-id"].decode()
    expected = value or trace_id
    assert [line.split("|")[1] for line in lines.getvalue().splitlines()] == [expected] * 2
    await handle(marking(app), extra={"stream_id": "of the app"})
    assert "|of the app\n" in lines.getvalue()


async def test_the_processor_adds_the_ids_to_an_event_of_structlog() -> None:
    seen = list[dict[str, Any]]()

    async def logging_app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        seen.extend(
            dict(add_stream_context(None, "info", event))
            for event in ({"event": "a"}, {"event": "b", "trace_id": "mine"})
        )
        await send(body(b"data: 1\n\n", more=False))

    assert add_stream_context(None, "info", {"event": "a"}) == {"event": "a"}
    exchange = await handle(marking(logging_app))
    trace_id = exchange.headers[b"x-trace-id"].decode()
    stream_id = exchange.headers[b"x-stream-id"].decode()
    assert seen == [
        {"event": "a", "trace_id": trace_id, "stream_id": stream_id},
        {"event": "b", "trace_id": "mine", "stream_id": stream_id},
    ]
