"""The browser client, served to pages.

Nothing is served unless `SSE_CLIENT_PATH` is set. The client is at that path, and the React hook in
the same directory. Caches keep a file with `?v=<our version>` in its address, and revalidate any
other.
"""

import hashlib
import re
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sse_middleware.http.request import SSERequest, app_path

CLIENT = "sse-client.js"
HOOK = "use-sse-stream.js"

_FILES = Path(__file__).parent
_IMMUTABLE = "public, max-age=31536000, immutable"  # one year, the longest time that caches keep
_REVALIDATE = "no-cache"


class _Served(NamedTuple):
    body: bytes
    etag: str


class ClientFiles:
    """Serve the client at `path`, below the `root_path`, and the hook in the same directory.

    Attributes:
        paths: the paths of both.
        version: the version of the client, which is that of the package.
    """

    def __init__(self, path: str) -> None:
        directory, _, name = path.rpartition("/")
        client, hook = (_FILES / CLIENT).read_bytes(), (_FILES / HOOK).read_bytes()
        found = re.search(rb'VERSION = "([^"]+)"', client)
        assert found is not None
        self.version = found[1].decode()
        self.paths = (path, f"{directory}/{HOOK}")
        hook = hook.replace(CLIENT.encode(), name.encode())
        self._files = {path: _served(client), self.paths[1]: _served(hook)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a file, or 304 if the client has it (RFC 9110 13.1.2)."""
        request, file = SSERequest(scope), self._files[app_path(scope)]
        versions = [value for name, value in request.query if name == "v"]
        headers = {
            "etag": file.etag,
            "cache-control": _IMMUTABLE if versions == [self.version] else _REVALIDATE,
            # Browsers fetch a module with CORS, for pages of any origin; it contains no secret.
            "access-control-allow-origin": "*",
            "cross-origin-resource-policy": "cross-origin",
            "x-content-type-options": "nosniff",
        }
        if _has(request, file.etag):
            response = Response(status_code=HTTPStatus.NOT_MODIFIED.value, headers=headers)
        else:
            headers["content-length"] = str(len(file.body))
            body = b"" if request.method == "HEAD" else file.body
            response = Response(body, headers=headers, media_type="text/javascript")
        await response(scope, receive, send)


def _served(body: bytes) -> _Served:
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    return _Served(body, f'"{digest}"')


def _has(request: SSERequest, etag: str) -> bool:
    tags = request.headers.get(b"if-none-match", b"").decode("latin-1").split(",")
    return not {etag, "*"}.isdisjoint(tag.strip().removeprefix("W/") for tag in tags)
