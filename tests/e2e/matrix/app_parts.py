"""The parts that the apps of all frameworks share: their streams, and the steps that they note."""

import asyncio
import gc
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from sse_middleware import streaming
from tests.e2e.matrix import notes

WITH_US = os.environ.get("MATRIX_WITHOUT_US", "") == ""
"""Whether the app has the middleware; the app without it is the reference."""

MARK = "*" if os.environ.get("MATRIX_UNMARKED", "") == "" else ()
"""The mark, or none for an app that has the middleware alone."""

MARKS = {"/kept": streaming(linger_seconds=60)} if MARK else {}
"""The marks of the streams to which their clients return."""

FILE = Path(os.environ.get("MATRIX_FILE", os.devnull))
"""A file for the file response of the framework."""

ENDLESS = 1_000_000_000

_NOTES = Path(os.environ["MATRIX_NOTES"])
"""A folder for the notes, which the workers of a server share."""


def note(key: str, step: str) -> None:
    """Note a step of the request with this `key`."""
    notes.add(_NOTES, key, step)


def noted(key: str) -> list[str]:
    return notes.read(_NOTES, key)


async def numbers(key: str, n: int, pause: float, *, boom: bool = False) -> AsyncGenerator[int]:
    """Count to `n`, raise an exception then if `boom`, and note the way out."""
    try:
        for number in range(n):
            yield number
            await asyncio.sleep(pause)
        if boom:
            raise ValueError(f"swordfish of {key}")
    except asyncio.CancelledError:
        note(key, "cancelled")
        raise
    except GeneratorExit:
        note(key, "closed")
        raise
    finally:
        note(key, "finally")


async def events(key: str, n: int, pause: float, *, boom: bool = False) -> AsyncIterator[bytes]:
    """Stream `numbers` as events."""
    async with aclosing(numbers(key, n, pause, boom=boom)) as counted:
        async for number in counted:
            yield b"data: %d\n\n" % number


async def events_of_upload(key: str, body: bytes, n: int, pause: float) -> AsyncIterator[bytes]:
    """Send a digest of the upload, then stream `numbers`."""
    yield b"data: " + digest(body).encode() + b"\n\n"
    async for event in events(key, n, pause):
        yield event


async def lines(key: str) -> AsyncIterator[bytes]:
    """Stream JSON lines for ever."""
    async with aclosing(numbers(key, ENDLESS, 0.05)) as counted:
        async for number in counted:
            yield b'{"number": %d}\n' % number


def digest(body: bytes) -> str:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}"


class _Leaving:
    """Note the way in which an app has left its requests, once their generators are finalised.

    The references to those are gone some turns after the request. The ways are noted at the third
    collection after it.
    """

    def __init__(self) -> None:
        self._ways: list[list[tuple[str, str]]] = [[], [], []]

    def add(self, key: str, how: str) -> None:
        if not any(self._ways):
            asyncio.get_running_loop().call_later(0.1, self._collect)
        self._ways[-1].append((key, how))

    def _collect(self) -> None:
        for key, how in self._ways.pop(0):
            note(key, f"app {how}")
        self._ways.append([])
        gc.collect()
        if any(self._ways):
            asyncio.get_running_loop().call_later(0.1, self._collect)


def watched(app: Any) -> ASGIApp:
    """Note the way in which the app leaves each request, after its own steps."""

    gc.collect()
    gc.freeze()  # spares the later collections these objects
    leaving = _Leaving()

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        key = dict(parse_qsl(scope.get("query_string", b"").decode())).get("key", "")
        how = "returned"
        try:
            await app(scope, receive, send)
        except BaseException as exc:
            how = f"raised {type(exc).__name__}"
            raise
        finally:
            if key and not scope["path"].endswith(("/state", "/release")):
                leaving.add(key, how)

    return watching
