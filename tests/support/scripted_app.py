"""An app that streams scripts in every shape that the wire format allows.

`/marked/{shape}` and `/by_path/{shape}`, which only its path marks, play a script with `?pause=`
seconds after each chunk, for the client `?client=`, and raise an exception at the end with
`?fails=`; `/runs` returns the number of runs for each client.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sse_middleware import SSEMiddleware, streaming

HEARTBEAT_SECONDS = 0.05
SILENCE_SECONDS = 0.12

Script = list[bytes | None]
"""The chunks of a response, with `None` for a silence that is longer than heartbeats."""

ROCKET = "🚀".encode()

_LF: Script = [
    b"\xef\xbb\xbfdata: one\n\n",
    b"event: named\ndata: two\n\n",
    b": a comment of the app\n\n",
    "data: ünïcödé 🚀 日本語 \u2028 e\u0301\n\n".encode(),
    b"data: several\ndata:  lines\ndata:\ndata: of data\n\n",
    None,
    b"data: three\n\ndata: four\n\ndata: fi",
    b"ve\n\n: half a comm",
    b"ent\n",
    b"data: ha",
    b"lf\n",
    b"data: and half\n",
    b"\n",
    b"event: nam",
    b"ed\ndata: " + ROCKET[:2],
    ROCKET[2:] + b"\n: inside\n\n",
    b"data\n\n",
    b"event: lonely\n\n",
    b"retry: 1500\ndata: event: complete\n\n",
    b"data: last\n\n",
    b"data: a tail that is never dispatched",
]

_CRLF: Script = [
    b"data: one\r\n\r\n",
    b"event: named\r\ndata: two\r\ndata: lines\r\n\r",
    b"\ndata: three\r",
    b"\n\r\n",
    None,
    b": a comment of the app\r\n",
    b"data: f\xc3\xbcnf " + ROCKET[:3],
    ROCKET[3:] + b"\r\n\r\n: another\r\n\r\ndata: six\r\n\r\n",
    b"data:7\r",
    b"\n",
    b"\r",
    b"\n",
    b"event: empty\r\ndata\r\n\r\n",
    b"data: last\r\n\r\n",
]

_CR: Script = [
    b"data: one\r\r",
    b"event: named\rdata: two\rdata: lines\r",
    b"\rdata: three\r",
    None,
    b"\r: a comment of the app\r",
    "data: 四 🚀\r\rdata: five\r\r".encode(),
    b"data: mixed\n\ndata: line\r\ndata: ends\r\r\n",
    b"data: last\r\r",
]

_LONG: Script = [b"data: %d %b\n\n" % (n, b"." * n * 300) for n in range(1, 30)]
"""More than is replayed at once."""

SCRIPTS = {"lf": _LF, "crlf": _CRLF, "cr": _CR, "long": _LONG}

_runs: Counter[str] = Counter()


def body_of(shape: str) -> bytes:
    """Return all bytes of a response."""
    return b"".join(chunk for chunk in SCRIPTS[shape] if chunk is not None)


async def _play(script: Script, pause: float, *, fails: bool) -> AsyncIterator[bytes]:
    for chunk in script:
        if chunk is None:
            await asyncio.sleep(SILENCE_SECONDS)
        else:
            yield chunk
            await asyncio.sleep(pause)
    if fails:
        raise ValueError("swordfish")


async def by_path(request: Request) -> Response:
    """Play a script."""
    _runs[request.query_params["client"]] += 1
    script = SCRIPTS[request.path_params["shape"]]
    pause, fails = float(request.query_params["pause"]), "fails" in request.query_params
    return StreamingResponse(_play(script, pause, fails=fails), media_type="text/event-stream")


@streaming()
async def marked(request: Request) -> Response:
    """Play a script as a marked stream."""
    return await by_path(request)


async def runs(request: Request) -> Response:
    """Return the number of runs for each client."""
    return JSONResponse(_runs)


app = Starlette(
    routes=[
        Route("/by_path/{shape}", by_path),
        Route("/marked/{shape}", marked),
        Route("/runs", runs),
    ]
)
app.add_middleware(SSEMiddleware, mark="/by_path/*")
