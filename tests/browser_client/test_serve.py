"""The files of the browser client: paths, headers, caching, and their presence in the wheel."""

import gzip
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

import sse_middleware
from sse_middleware import SSEMiddleware
from sse_middleware.errors import ConfigurationError
from tests.support.asgi import Exchange, handle

pytestmark = pytest.mark.anyio

FILES = Path(sse_middleware.__file__).parent / "client"
CLIENT = (FILES / "sse-client.js").read_bytes()
HOOK = (FILES / "use-sse-stream.js").read_bytes()
VERSION = sse_middleware.__version__
PATH = "/static/sse-client.js"


async def of_app(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("of the app", 404)(scope, receive, send)


async def get(path: str = PATH, *, query: str = "", at: str = PATH, **request: Any) -> Exchange:
    app = SSEMiddleware(of_app, client_path=at)
    return await handle(app, path=path, query_string=query.encode(), **request)


def headers_of(exchange: Exchange) -> dict[bytes, bytes]:
    return dict(exchange.start["headers"])


async def test_no_file_is_served_unless_client_path_is_set() -> None:
    for path in ("/sse-client.js", "/use-sse-stream.js", "/static/sse-client.js", "/"):
        assert (await handle(SSEMiddleware(of_app), path=path)).body == b"of the app"


async def test_client_is_served_at_its_path_and_hook_in_the_same_directory() -> None:
    for path, file in ((PATH, CLIENT), ("/static/use-sse-stream.js", HOOK)):
        exchange = await get(path)
        headers = headers_of(exchange)
        assert exchange.start["status"] == 200
        assert exchange.body == file
        assert headers[b"content-type"] == b"text/javascript; charset=utf-8"
        assert headers[b"content-length"] == b"%d" % len(file)
        assert headers[b"access-control-allow-origin"] == b"*"
        assert headers[b"x-content-type-options"] == b"nosniff"


async def test_hook_imports_a_client_with_another_file_name() -> None:
    assert b'from "./client-1.js"' in (await get("/a/use-sse-stream.js", at="/a/client-1.js")).body
    assert (await get("/a/client-1.js", at="/a/client-1.js")).body == CLIENT


async def test_environment_variable_sets_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSE_CLIENT_PATH", "/sse.js")
    assert (await handle(SSEMiddleware(of_app), path="/sse.js")).body == CLIENT


async def test_only_an_address_with_the_version_is_immutable() -> None:
    cached = headers_of(await get(query=f"v={VERSION}"))[b"cache-control"]
    assert cached == b"public, max-age=31536000, immutable"
    for query in ("", "v=0.0.1", f"v={VERSION}&v=2", f"w={VERSION}"):
        assert headers_of(await get(query=query))[b"cache-control"] == b"no-cache"


async def test_matching_etag_returns_304() -> None:
    etag = headers_of(await get())[b"etag"]
    for tags in (etag, b'"x", W/' + etag, b"*"):
        exchange = await get(headers=[(b"if-none-match", tags)])
        assert exchange.start["status"] == 304
        assert exchange.body == b""
        assert headers_of(exchange)[b"etag"] == etag
        assert b"content-length" not in headers_of(exchange)
    other = await get(headers=[(b"if-none-match", b'"x"')])
    assert other.start["status"] == 200
    hook = headers_of(await get("/static/use-sse-stream.js"))[b"etag"]
    assert hook != etag


async def test_head_has_no_body_and_other_methods_reach_the_app() -> None:
    head = await get(method="HEAD")
    assert head.start["status"] == 200
    assert headers_of(head)[b"content-length"] == b"%d" % len(CLIENT)
    assert head.body == b""
    assert (await get(method="POST")).body == b"of the app"


async def test_path_is_relative_to_the_root_path() -> None:
    mounted = Starlette(routes=[Mount("/sub", SSEMiddleware(of_app, client_path=PATH))])
    assert (await handle(mounted, path=f"/sub{PATH}")).body == CLIENT
    for path in (f"/api{PATH}", PATH):
        assert (await get(path, root_path="/api")).body == CLIENT
    assert (await get(f"/other{PATH}")).body == b"of the app"


async def test_no_file_is_served_if_the_middleware_is_disabled() -> None:
    app = SSEMiddleware(of_app, client_path=PATH, enabled=False)
    assert (await handle(app, path=PATH)).body == b"of the app"


@pytest.mark.parametrize("path", ["sse.js", "/", "/static/", '/a".js', "/a b.js", "/a?b"])
def test_invalid_path_is_rejected(path: str) -> None:
    with pytest.raises(ConfigurationError, match="client_path"):
        SSEMiddleware(of_app, client_path=path)


def test_client_has_the_version_of_the_package() -> None:
    assert f'export const VERSION = "{VERSION}";' in CLIENT.decode()


def test_client_is_small_and_has_no_dependencies() -> None:
    assert len(gzip.compress(CLIENT, mtime=0)) < 6500
    assert b"\nimport " not in CLIENT
    imports = [line for line in HOOK.decode().splitlines() if line.startswith("import ")]
    assert [line.rpartition(" ")[2] for line in imports] == ['"react";', '"./sse-client.js";']


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    directory = tmp_path_factory.mktemp("wheel")
    root = FILES.parent.parent
    if not (root / "pyproject.toml").exists():
        pytest.skip("the package is not in its repository")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as opened:
        yield opened


def test_wheel_contains_the_client_as_a_package_of_npm(wheel: zipfile.ZipFile) -> None:
    files = json.loads((FILES / "package.json").read_text())["files"]
    for name in ("package.json", *files):
        assert wheel.read(f"sse_middleware/client/{name}") == (FILES / name).read_bytes()
