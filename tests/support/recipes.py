"""The programs of docs/recipes.md."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from tests.docs.snippets import DOCS
from tests.support import needs
from tests.support.asgi import Exchange, handle

if TYPE_CHECKING:
    from starlette.types import ASGIApp

PAGE = (DOCS / "recipes.md").read_text()
NAMED = b"text/event-stream;events=named"
"""The `Accept` of a client of the kind `eventsource`."""

_PROGRAM = re.compile(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAMS: dict[str, str] = dict(_PROGRAM.findall(PAGE))
"""The program of each heading."""


def run_program(heading: str, package: str) -> dict[str, Any]:
    """Run the program below a heading, which needs a package, and return its names."""
    needs.module("fastapi")
    needs.module(package)
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(PROGRAMS[heading], f"recipe {heading}", "exec"), names)
    return names


async def request(
    app: ASGIApp, method: str, path: str, *, accept: bytes = b"*/*", query: bytes = b"", **body: Any
) -> Exchange:
    """Make a request of an identified client, with a JSON body if it has one."""
    headers = [(b"accept", accept), (b"authorization", b"Bearer ann")]
    data = json.dumps(body).encode() if body else b""
    if body:
        headers.append((b"content-type", b"application/json"))
    return await handle(
        app, method=method, path=path, query_string=query, headers=headers, body=data
    )


def types_of(exchange: Exchange) -> list[str]:
    """Return the types of the events of a stream."""
    assert exchange.status == 200, exchange.body
    assert exchange.headers[b"content-type"].startswith(b"text/event-stream")
    return [event.event for event in exchange.events]
