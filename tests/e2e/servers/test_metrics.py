"""The metrics at a path that Django does not serve; it reads the request's body before its 404."""

from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.servers import SERVERS, serving
from tests.support.waiting import HANG_SECONDS


@pytest.mark.parametrize("name", SERVERS)
def test_each_scrape_is_answered_and_the_server_ends(name: str, tmp_path: Path) -> None:
    environ = {"MATRIX_NOTES": str(tmp_path)}
    with serving(name, "tests.e2e.matrix.on_django:app", tmp_path, environ) as server:
        for content in (b"", b"x" * 200_000, b""):
            scrape = httpx.request(
                "GET", f"{server.url}/metrics", content=content, timeout=HANG_SECONDS
            )
            assert scrape.status_code == 200
            assert "sse_streams_active" in scrape.text
        server.process.terminate()
        server.process.wait(HANG_SECONDS)
