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

WITH_US = os.environ.get("MATRIX_WITHOUT_US", "") == ""
"""Whether the app has the middleware; the app without it is the reference."""

MARK = "*" if os.environ.get("MATRIX_UNMARKED", "") == "" else ()
"""The mark, or none for an app that has the middleware alone."""

FILE = Path(os.environ.get("MATRIX_FILE", os.devnull))
"""A file for the file response of the framework."""

ENDLESS = 1_000_000_000

_noted: dict[str, list[str]] = {}


def note(key: str, step: str) -> None:
    """Note a step of the request with this `key`."""
    _noted.setdefault(key, []).append(step)


def noted(key: str) -> list[str]:
    gc.collect()  # finalises generators without references
    return _noted.get(key, [])


async def numbers(key: str, n: int, pause: float, *, boom: bool = False) -> AsyncGenerator[int]:
    """Count to `n`, raise an exception then if `boom`, and note the way out."""
    try:
        for number in range(n):
            yield number
            await asyncio.sleep(pause)
        if boom:
            raise ValueError("swordfish")
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


def watched(app: Any) -> ASGIApp:
    """Note the way in which the app leaves each request, after its own steps."""

    gc.collect()
    gc.freeze()  # spares the later collections these objects

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        key = dict(parse_qsl(scope.get("query_string", b"").decode())).get("key", "")
        how = "returned"
        try:
            await app(scope, receive, send)
        except BaseException as exc:
            how = f"raised {type(exc).__name__}"
            raise
        finally:
            if not scope.get("path", "").endswith("/state"):
                note(key, f"app {how}")

    return watching
