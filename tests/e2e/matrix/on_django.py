"""The app in Django, with `get_asgi_application()` wrapped, which supports HTTP only."""

import asyncio

from django.conf import settings  # type: ignore[import-untyped]
from django.core.asgi import get_asgi_application  # type: ignore[import-untyped]
from django.http import (  # type: ignore[import-untyped]
    FileResponse,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    JsonResponse,
    StreamingHttpResponse,
)
from django.urls import path  # type: ignore[import-untyped]

from sse_middleware import SSEMiddleware
from tests.e2e.matrix import app_parts

settings.configure(
    SECRET_KEY="matrix",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    query = request.GET
    key, n, pause = query["key"], int(query["n"]), float(query["pause"])
    content = app_parts.events(key, n, pause, boom="boom" in query)
    if request.method == "POST":
        content = app_parts.events_of_upload(key, request.body, n, pause)
    response = StreamingHttpResponse(content, content_type="text/event-stream")
    response.set_cookie("one", "1")
    response.set_cookie("two", "2")
    return response


async def lines(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(
        app_parts.lines(request.GET["key"]), content_type="application/x-ndjson"
    )


async def json(request: HttpRequest) -> HttpResponse:
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(["GET", "HEAD"])
    return JsonResponse({"answer": 42})


async def background(request: HttpRequest) -> HttpResponse:
    key = request.GET["key"]
    asyncio.get_running_loop().call_soon(app_parts.note, key, "background")
    return JsonResponse({})


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(app_parts.FILE.open("rb"))


def upload(request: HttpRequest) -> HttpResponse:
    return HttpResponse(app_parts.digest(request.body))


async def boom(request: HttpRequest) -> HttpResponse:
    raise ValueError("swordfish of django")


async def state(request: HttpRequest) -> HttpResponse:
    return JsonResponse(app_parts.noted(request.GET["key"]), safe=False)


urlpatterns = [
    path("stream", stream),
    path("kept", stream),
    path("lines", lines),
    path("json", json),
    path("background", background),
    path("file", file),
    path("upload", upload),
    path("boom", boom),
    path("state", state),
]

app = get_asgi_application()
if app_parts.WITH_US:
    app = SSEMiddleware(app, mark=app_parts.MARK, marks=app_parts.MARKS)
