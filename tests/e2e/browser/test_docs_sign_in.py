"""The page with a sign-in of docs/browser.md: another origin, and tokens that expire meanwhile."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.docs.snippets import snippets
from tests.support.servers import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

WORDS = ["to", "be", "or", "not", "to", "be"]
SHOW = """
window.shown = [];
window.client = follow((word) => shown.push(word), () => (window.signedOut = true));
"""


class Site(NamedTuple):
    """The page, and the server of its streams, which is another origin."""

    page: str
    api: str


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    app, pages = "tests.e2e.browser.docs_app:app", tmp_path / "pages"
    pages.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(pages))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as static:
        page = f"http://localhost:{static.server_port}"
        threading.Thread(target=static.serve_forever).start()
        environ = {
            "DOCS_SNIPPET": "1",
            "PAGE_ORIGIN": page,
            "TOKEN_SECONDS": "2.5",
            "SSE_RETRY_MS": "100",
        }
        try:
            with serving("uvicorn-httptools", app, tmp_path, environ) as server:
                script = snippets("js")[0].replace("https://api.example", server.url)
                assert "export function follow" in script
                (pages / "index.html").write_text(
                    '<!doctype html><link rel="icon" href="data:,">'
                    f'<script type="module">{script}{SHOW}</script>'
                )
                yield Site(page, server.url)
                server.process.kill()
        finally:
            static.shutdown()


def show(page: "Page", site: Site) -> list[str]:
    """Open the page; return the list of the requests that it makes, which grows."""
    requests: list[str] = []
    page.on("request", lambda it: requests.append(f"{it.method} {it.url}"))
    page.goto(site.page)
    return requests


def count(requests: list[str], path: str) -> int:
    return sum(path in request and request.startswith("GET") for request in requests)


def test_an_answer_outlives_its_token_and_arrives_once(page: "Page", site: Site) -> None:
    requests = show(page, site)
    page.wait_for_function("window.client?.state === 'disconnected' && shown.length > 0")
    assert page.evaluate("[shown, window.signedOut ?? false]") == [WORDS, False]
    assert count(requests, "/token") >= 2
    assert count(requests, "/private/answers") >= 2


def test_a_page_without_a_valid_token_gets_the_status_and_continues_after_the_sign_in(
    page: "Page", site: Site
) -> None:
    rejected = [True]

    def answer(route: "Route") -> None:
        if rejected[0]:
            route.fulfill(
                json={"token": "ann:1:0", "seconds": 0},
                headers={"access-control-allow-origin": site.page},
            )
        else:
            route.continue_()

    page.route(f"{site.api}/token", answer)
    show(page, site)
    page.wait_for_function("window.signedOut")
    rejected[0] = False
    page.evaluate("client.start()")
    page.wait_for_function("client.state === 'disconnected' && shown.length > 1")
    assert page.evaluate("shown.filter((word) => word !== null)") == WORDS
