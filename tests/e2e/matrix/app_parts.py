"""What the apps of all frameworks share: what they stream, and what they note of themselves."""

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
"""Whether the app is wrapped; the same app without us says what must be the same."""

FILE = Path(os.environ.get("MATRIX_FILE", os.devnull))
"""A file to be sent by the framework's own response."""

ENDLESS = 1_000_000_000

_noted: dict[str, list[str]] = {}


def note(key: str, what: str) -> None:
    """Remember what happened to the request that called itself `key`."""
    _noted.setdefault(key, []).append(what)


def noted(key: str) -> list[str]:
    gc.collect()  # so that a generator which was left behind is finalised
    return _noted.get(key, [])


async def numbers(key: str, n: int, pause: float, *, boom: bool = False) -> AsyncGenerator[int]:
    """Count to `n`, raise there if `boom`, and note how that was left."""
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
    """Tell what was uploaded, then stream `numbers`."""
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
    """Note how the app leaves each request: what it notes itself is there by then."""

    gc.collect()
    gc.freeze()  # what is there by now need not be looked at each time that somebody asks

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
