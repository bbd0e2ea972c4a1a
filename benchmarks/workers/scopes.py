"""The requests of drivers that play the server."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope


def request_scope(target: str, headers: Mapping[str, str]) -> "Scope":
    """Return the scope of a GET request as uvicorn writes it; `target` is a path and a query."""
    path, _, query = target.partition("?")
    headers = {"Host": "127.0.0.1", **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "state": {},
    }
