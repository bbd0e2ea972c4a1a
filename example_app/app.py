"""The web application: questions in, event streams out, one line for everything a stream needs.

Two event streams by two libraries, to show that the middleware works with any of them: `GET
/stream/search` by FastAPI, for a page's `EventSource`, and `POST /search` by sse-starlette, for
clients that use `fetch` or run on a server. The latter receive no bytes but those of the app, which
therefore numbers its events itself. Neither endpoint implements heartbeats, resuming, limits or
trace ids: the line `app.add_middleware(SSEMiddleware)` adds them. Its `client_path` serves the
client that the page uses. A third stream, `POST /v1/react/sessions`, is produced by a worker in
another process, and others by an upstream service with another dialect: `POST
/v1/chat/completions`, `POST /v1/responses`, which may run in the background, and `POST
/threads/{thread_id}/messages` with a cache and a second provider.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator  # noqa: TC003  # FastAPI reads it at run time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse

from example_app.agents import Agents
from example_app.completions.endpoint import add_completions, create_handler, create_qwen_client
from example_app.cut import Cutter
from example_app.identity import identity_of
from example_app.react_agent import react_session
from example_app.responses.endpoint import add_responses, create_responses
from example_app.search import SearchIndex, load_passages
from example_app.search_endpoints import search, session_of, stream_search
from example_app.threads.endpoint import PATHS as THREADS_PATHS
from example_app.threads.endpoint import add_threads, create_threads, thread_mark
from example_app.worker import Worker
from sse_middleware import SSEMiddleware, streaming
from sse_middleware.channels import Publisher, close_channels

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx2

# About 40 words a second: the pace of a fast model, and slow enough to see a stream at work.
TOKEN_DELAY_SECONDS: Final = 0.025

# All that ask a thread the same at the same time are readers of one stream.
MAX_READERS: Final = 1000

CLIENT_PATH: Final = "/sse-client.js"

_STATIC: Final = Path(__file__).parent / "static"
# With explicit types, because the system's table may map a script to text/plain.
_PAGE_FILES: Final = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/strip.js": ("strip.js", "text/javascript"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
_PAGE_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
}


def create_app(
    *,
    token_delay_seconds: float = TOKEN_DELAY_SECONDS,
    qwen: httpx2.AsyncClient | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        token_delay_seconds: the pause between two pieces of an answer, unless the request sets
            another one by `delay_ms`; 0 streams as fast as the client reads.
        qwen: a client whose `base_url` is that of a service with Qwen's dialect; by default the
            one in this process, which answers from the corpus.

    Returns:
        The application; it indexes its corpus when it starts.

    """
    app = FastAPI(title="Ask the Python documentation", lifespan=_lifespan)
    app.state.token_delay_seconds = token_delay_seconds
    app.state.qwen = qwen
    # The answers of this path are streams or JSON, so a glob marks it, which is no promise of a
    # stream; the other two endpoints carry their marks.
    marks = {
        "/search*": streaming(
            ids="app", stream_key=session_of, order=("token", "citation", "done")
        ),
        THREADS_PATHS: thread_mark(),
    }
    app.add_middleware(
        SSEMiddleware,
        marks=marks,
        client_path=CLIENT_PATH,
        identify=identity_of,
        max_readers=MAX_READERS,
    )
    app.add_middleware(Cutter)  # outermost, so that it sees the stream ids
    app.get("/stream/search", response_model=None)(stream_search)
    app.post("/search", response_model=None)(search)
    add_completions(app)
    add_responses(app)
    add_threads(app)
    app.post("/v1/react/sessions", response_model=None)(react_session)
    app.exception_handler(RequestValidationError)(_refuse)
    for path, (name, media_type) in _PAGE_FILES.items():
        app.get(path, include_in_schema=False)(_page_file(name, media_type))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Index the corpus in a thread, so that the loop stays free while it starts."""
    app.state.index = index = await asyncio.to_thread(lambda: SearchIndex(load_passages()))
    pause, qwen = app.state.token_delay_seconds, app.state.qwen
    app.state.completions = create_handler(index, token_delay_seconds=pause, client=qwen)
    app.state.threads = create_threads(index, token_delay_seconds=pause, client=qwen)
    app.state.responses = create_responses(app, index, token_delay_seconds=pause, client=qwen)
    works: list[asyncio.Task[None]] = []
    if not os.environ.get("SSE_REDIS_URL"):  # jobs do not reach other processes
        agents = Agents(index, create_qwen_client(index, token_delay_seconds=0, client=qwen))
        worker = Worker(agents, Publisher(), pause)
        works.append(asyncio.create_task(worker.run()))
    yield
    await app.state.responses.inner.aclose()
    for work in works:
        work.cancel()
    await asyncio.gather(*works, return_exceptions=True)
    await close_channels()


async def _refuse(_request: Request, problem: RequestValidationError) -> JSONResponse:
    r"""Return the errors of a request, without its input.

    FastAPI's own answer repeats the input, and fails if it cannot be encoded ("\ud800").
    """
    shown = ("type", "loc", "msg")
    return JSONResponse(
        {"detail": [{field: error[field] for field in shown} for error in problem.errors()]},
        status_code=422,
    )


def _page_file(name: str, media_type: str) -> Callable[[], FileResponse]:
    """Make the endpoint that serves one file of the page."""

    def page_file() -> FileResponse:
        return FileResponse(_STATIC / name, media_type=media_type, headers=_PAGE_HEADERS)

    return page_file


app = create_app()
