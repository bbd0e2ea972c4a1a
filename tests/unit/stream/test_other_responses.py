"""A marked endpoint that streams something else than events is reported, once per route."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, streaming
from tests.support.asgi import handle

pytestmark = pytest.mark.anyio


async def lines() -> AsyncIterator[str]:
    yield "data: 1\n\n"


def app_with(response: Any, *, marked: bool = True, **options: Any) -> SSEMiddleware:
    async def endpoint(_: Request) -> Response:
        made: Response = response()
        return made

    methods = ["GET", "POST", "DELETE"]
    endpoint = streaming(endpoint) if marked else endpoint
    app = Starlette(routes=[Route("/answers/{id}", endpoint, methods=methods)])
    return SSEMiddleware(app, registry=CollectorRegistry(), **options)


def without_type() -> Response:
    return StreamingResponse(lines())


def as_text() -> Response:
    return StreamingResponse(lines(), media_type="text/plain")


async def warnings(
    caplog: pytest.LogCaptureFixture, app: SSEMiddleware, *, times: int = 2, method: str = "GET"
) -> list[str]:
    for number in range(times):
        exchange = await handle(app, path=f"/answers/{number}", method=method)
        assert b"x-stream-id" not in exchange.headers
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("response", "shown"), [(without_type, "none"), (as_text, "text/plain; charset=utf-8")]
)
async def test_a_forgotten_media_type_is_reported(
    caplog: pytest.LogCaptureFixture, response: Any, shown: str
) -> None:
    (warning,) = await warnings(caplog, app_with(response))
    assert "/answers/{id}" in warning
    assert f"(content type: {shown})" in warning
    assert 'media_type="text/event-stream"' in warning


async def test_a_mark_by_path_counts_too(caplog: pytest.LogCaptureFixture) -> None:
    app = app_with(as_text, marked=False, mark="/answers/*")
    assert len(await warnings(caplog, app)) == 1


@pytest.mark.parametrize(
    "response",
    [
        lambda: JSONResponse({}),
        lambda: PlainTextResponse("a"),
        lambda: Response(status_code=204),
        lambda: StreamingResponse(lines(), status_code=404, media_type="text/plain"),
    ],
)
async def test_complete_answers_and_errors_are_usual(
    caplog: pytest.LogCaptureFixture, response: Any
) -> None:
    assert await warnings(caplog, app_with(response)) == []


async def test_other_endpoints_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert await warnings(caplog, app_with(as_text, marked=False)) == []
    assert await warnings(caplog, app_with(as_text, marked=False, mark="/other")) == []
    assert await warnings(caplog, app_with(as_text), method="DELETE") == []


async def test_only_the_first_responses_are_checked(caplog: pytest.LogCaptureFixture) -> None:
    app = app_with(as_text)
    app._context.other_responses.unchecked = 1
    app._context.warned.add(("content-type", "/answers/{id}"))
    assert await warnings(caplog, app) == []
    app._context.warned.clear()
    assert await warnings(caplog, app) == []
    assert app._context.other_responses.unchecked == 0
