"""The apps of several frameworks in one process, each with its own middleware.

The header `x-framework` of a request selects one; `MATRIX_FRAMEWORKS` has the names of all.
"""

import asyncio
import os
from contextlib import suppress
from importlib import import_module

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.e2e.matrix import app_parts

_NAMES = os.environ["MATRIX_FRAMEWORKS"].split()
_APPS: dict[str, ASGIApp] = {
    name: import_module(f"tests.e2e.matrix.on_{name}").app for name in _NAMES
}


class _Lifespan:
    """The lifespan of one of the apps; one without it raises an exception, or returns."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._messages = asyncio.Queue[Message]()
        self._responded = asyncio.Event()
        self._task = asyncio.ensure_future(app({**scope}, self._messages.get, self._send))

    async def _send(self, message: Message) -> None:
        assert message["type"].endswith(".complete"), message
        self._responded.set()

    async def handle(self, message: Message) -> None:
        self._responded.clear()
        self._messages.put_nowait(message)
        responding = asyncio.ensure_future(self._responded.wait())
        await asyncio.wait([self._task, responding], return_when=asyncio.FIRST_COMPLETED)
        responding.cancel()

    async def end(self) -> None:
        with suppress(ValueError):  # Django's
            await self._task


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    lifespans = [_Lifespan(app, scope) for app in _APPS.values()]
    for phase in ("startup", "shutdown"):
        message = await receive()
        for lifespan in lifespans:
            await lifespan.handle(message)
        await send({"type": f"lifespan.{phase}.complete"})
    for lifespan in lifespans:
        await lifespan.end()


async def _dispatch(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await _lifespan(scope, receive, send)
    else:
        name = dict(scope["headers"])[b"x-framework"].decode()
        await _APPS[name](scope, receive, send)


async def _pid(send: Send) -> None:
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


_watched = app_parts.watched(_dispatch)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Return the id of the process at `/pid`, and pass other requests on."""
    if scope["type"] == "http" and scope["path"] == "/pid":
        await _pid(send)
    else:
        await _watched(scope, receive, send)
