"""The browser's half of the library, served to pages.

Explicit only: nothing is served unless `SSE_CLIENT_PATH` names where. The client lies there, the
React hook beside it; an address with `?v=<our version>` never changes, any other is asked again.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from sse_middleware.http.routes import below_root

CLIENT = "sse-client.js"
HOOK = "use-sse-stream.js"

_FILES = Path(__file__).parent
_FOR_EVER = b"public, max-age=31536000, immutable"  # a year, as caches take it
_ASK_AGAIN = b"no-cache"


class _Served(NamedTuple):
    body: bytes
    etag: bytes


class ClientFiles:
    """Serve the client at `path`, below the `root_path`, and the hook in the same directory.

    Attributes:
        paths: where both lie.
        version: that of the client, and so of the package.
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

    def serves(self, scope: Scope) -> bool:
        """Tell whether a request is for us."""
        return below_root(scope) in self._files and scope.get("method") in ("GET", "HEAD")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer with a file, or with 304 to who has it (RFC 9110 13.1.2)."""
        file = self._files[below_root(scope)]
        versions = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("v", [])
        headers = [
            (b"etag", file.etag),
            (b"cache-control", _FOR_EVER if versions == [self.version] else _ASK_AGAIN),
            # A module is fetched with CORS, whoever includes it; there is no secret in it.
            (b"access-control-allow-origin", b"*"),
            (b"cross-origin-resource-policy", b"cross-origin"),
            (b"x-content-type-options", b"nosniff"),
        ]
        body = b""
        status = 304
        if not _has(scope, file.etag):
            status = 200
            headers += [
                (b"content-type", b"text/javascript; charset=utf-8"),
                (b"content-length", b"%d" % len(file.body)),
            ]
            body = b"" if scope["method"] == "HEAD" else file.body
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _served(body: bytes) -> _Served:
    digest = hashlib.blake2b(body, digest_size=16).hexdigest()
    return _Served(body, f'"{digest}"'.encode())


def _has(scope: Scope, etag: bytes) -> bool:
    for name, value in scope.get("headers") or ():
        if name.lower() == b"if-none-match":
            tags = [tag.strip().removeprefix(b"W/") for tag in value.split(b",")]
            if etag in tags or b"*" in tags:
                return True
    return False
