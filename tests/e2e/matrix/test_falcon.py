"""Falcon, whose responses with a stream do not listen for the disconnect of their client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sse_middleware import SSEMiddleware
from tests.support import needs
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio

PLAIN: list[tuple[bytes, bytes]] = []
EACH_CLIENT = pytest.mark.parametrize("headers", [EVENTSOURCE, PLAIN], ids=["eventsource", "plain"])


class Numbers:
    """Stream numbers, as bytes or by Falcon's own events, and note how that has ended."""

    def __init__(self, count: int) -> None:
        self.ends: list[str] = []
        self._count = count

    async def on_get(self, request: Any, response: Any) -> None:
        by_falcon = request.path == "/sse"

        async def events() -> AsyncIterator[Any]:
            try:
                for number in range(self._count):
                    event = needs.module("falcon.asgi").SSEvent(text=str(number))
                    yield event if by_falcon else b"data: %d\n\n" % number
                    await asyncio.sleep(1)
                self.ends.append("finished")
            except BaseException as exc:
                self.ends.append(type(exc).__name__)
                raise

        if by_falcon:
            response.sse = events()
        else:
            response.content_type = "text/event-stream"
            response.stream = events()


def falcon_app(numbers: Numbers) -> Any:
    app = needs.module("falcon.asgi").App()
    app.add_route("/stream", numbers)
    app.add_route("/sse", numbers)
    return app


@pytest.mark.parametrize("path", ["/stream", "/sse"])
@EACH_CLIENT
async def test_a_stream_is_the_same_with_the_middleware(
    path: str, headers: list[tuple[bytes, bytes]]
) -> None:
    bare, unmarked, marked = [
        await handle(wrap(falcon_app(Numbers(3))), headers=headers, path=path)
        for wrap in (lambda app: app, SSEMiddleware, marking)
    ]
    assert unmarked.body == bare.body
    messages = [[e.data for e in one.events if e.event == "message"] for one in (bare, marked)]
    assert messages == [["0", "1", "2"]] * 2


@EACH_CLIENT
async def test_an_app_that_does_not_listen_stops_after_its_client_on_marked_routes_only(
    headers: list[tuple[bytes, bytes]],
) -> None:
    for wrap, expected in ((SSEMiddleware, "finished"), (marking, "CancelledError")):
        numbers = Numbers(50)
        app = wrap(falcon_app(numbers))
        scope = http_scope(path="/stream", headers=headers)
        async with running(app, Exchange(scope)) as exchange:
            await exchange.until_count(2, "message")
            exchange.disconnect()
            assert exchange.task is not None
            await exchange.task
        assert numbers.ends == [expected]
