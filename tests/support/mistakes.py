"""Calls with mistakes, and a check of the errors that explain them."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware, streaming

Mistake = tuple[Callable[[], object], str]
"""A call, and the text of its error."""


async def app(scope: Scope, receive: Receive, send: Send) -> None: ...


def wrap(**arguments: Any) -> Callable[[], object]:
    return lambda: SSEMiddleware(app, **arguments)


def mark(**arguments: Any) -> Callable[[], object]:
    return lambda: streaming(**arguments)


def check_explained(mistake: Mistake) -> None:
    """Make the call, and compare the whole text of its error."""
    make, message = mistake
    with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}$"):
        make()
