"""The types that users write: mypy checks this file, and the tests run it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, assert_type

from starlette.applications import Starlette
from starlette.routing import Route

from sse_middleware import EndInfo, Event, Mark, OnEnd, resume_endpoint, streaming
from sse_middleware.resume.endpoint import ResumeEndpoint

if TYPE_CHECKING:
    from starlette.types import ASGIApp


async def save(info: EndInfo, events: list[Event]) -> None:
    assert_type(info.stream_id, str)
    assert_type(info.name, str)
    assert_type(info.route, str)
    assert_type(info.reason, str)
    assert_type(info.trace_id, str)
    assert_type(info.chunks, int)
    assert_type(info.tokens, int)
    assert_type(info.duration_seconds, float)
    assert_type(info.truncated, bool)
    assert_type(info.annotations, Mapping[str, object])
    assert_type(events[0].data, str)


def save_at_once(info: EndInfo, events: list[Event]) -> int:
    return len(events)


def test_on_end_may_be_async_or_not_and_return_anything() -> None:
    functions: list[OnEnd] = [save, save_at_once, lambda info, events: (info, events)]
    for function in functions:
        assert assert_type(streaming(on_end=function), Mark).on_end is function


def test_on_end_keeps_the_type_of_the_endpoint() -> None:
    @streaming(on_end=save)
    def endpoint(number: int) -> str:
        return str(number)

    assert assert_type(endpoint(1), str) == "1"


def test_a_name_of_a_resume_endpoint_is_optional() -> None:
    assert_type(resume_endpoint(), ResumeEndpoint)
    assert_type(resume_endpoint("chat:{chat}"), ResumeEndpoint)
    endpoint = resume_endpoint(lambda scope: str(scope["path"]), finished="replay")
    assert isinstance(endpoint, ResumeEndpoint)


def test_a_resume_endpoint_is_a_route_and_an_app() -> None:
    app, endpoint = Starlette(), resume_endpoint("chat:{chat}")
    app.add_route("/chats/{chat}/live", endpoint, methods=["GET", "DELETE"])
    asgi: ASGIApp = endpoint
    assert Route("/live", endpoint).app is asgi
