"""Each snippet of docs/browser.md, run by Chromium or node, with connections that are cut."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.docs.snippets import snippets
from tests.e2e.browser.react_module import PACKAGES, react_module
from tests.e2e.browser.thread_proxy import ThreadProxy, running_proxy
from tests.support import needs
from tests.support.servers import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

ANSWER = "to be or not to be"
PLAIN, CALLBACKS, LOOP, VUE, HTMX = snippets("html")
(REACT,) = snippets("jsx")
AI = snippets("js")[1]  # for the others see `test_docs_sign_in` and `test_use_chat`
IMPORTS = """<script type="importmap">{"imports": {
    "react": "/react.js",
    "react-dom/client": "/react.js",
    "vue": "/npm/vue/dist/vue.esm-browser.prod.js"
}}</script>"""


@contextmanager
def docs_server(directory: Path, **environ: str) -> Iterator[ThreadProxy]:
    app = "tests.e2e.browser.docs_app:app"
    environ = {"SSE_RETRY_MS": "100", "SSE_HEARTBEAT_INTERVAL": "0.2"} | environ
    with serving("uvicorn-httptools", app, directory, environ) as running:
        with running_proxy(running.port) as proxy:
            yield proxy
        running.process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadProxy]:
    with docs_server(tmp_path_factory.mktemp("docs")) as proxy:
        yield proxy


@pytest.fixture
def cut(server: ThreadProxy) -> Iterator[ThreadProxy]:
    """The server with a proxy that cuts an answer in two places."""
    needs.node()  # a test that is skipped would make no cuts
    server.cut(*(rb'(word": ?"|delta": ?"|<b>)%b' % word for word in (b"or", b"not")))
    yield server
    assert server.discard_cuts() == 0, "not all cuts were made"


def show(page: "Page", server: ThreadProxy, html: str) -> None:
    """Load a snippet as a page of the server, with its packages from npm."""

    def answer(route: "Route") -> None:
        name = route.request.url.partition("/npm/")[2]
        route.fulfill(path=PACKAGES / name, content_type="text/javascript")

    def react(route: "Route") -> None:
        route.fulfill(body=react_module("19"), content_type="text/javascript")

    page.route("**/npm/**", answer)
    page.route("**/react.js", react)
    head = f'<!doctype html><link rel="icon" href="data:,">{IMPORTS}'
    page.route("**/snippet", lambda it: it.fulfill(body=head + html, content_type="text/html"))
    page.goto(f"http://127.0.0.1:{server.port}/snippet")


def wait_for_answer(page: "Page") -> None:
    page.wait_for_function(
        "(words) => document.querySelector('#answer').innerText.trim().split(/\\s+/).length"
        " >= words",
        arg=len(ANSWER.split()),
    )
    page.wait_for_timeout(300)  # no word arrives twice
    assert page.inner_text("#answer").split() == ANSWER.split()


@pytest.mark.parametrize("snippet", [PLAIN, LOOP, HTMX], ids=["EventSource", "loop", "HTMX"])
def test_a_snippet_has_each_word_once_though_it_is_cut(
    page: "Page", cut: ThreadProxy, snippet: str
) -> None:
    show(page, cut, snippet)
    wait_for_answer(page)


def test_the_client_shows_its_state(page: "Page", cut: ThreadProxy) -> None:
    show(page, cut, CALLBACKS)
    wait_for_answer(page)
    assert page.inner_text("#state") == "disconnected"


def test_the_client_is_stopped_by_its_button(page: "Page", tmp_path: Path) -> None:
    at_first_word = """<script>
        const stop = () => document.querySelector("#stop").click();
        new MutationObserver(stop).observe(document.querySelector("#answer"), { childList: true });
    </script>"""
    needs.node()
    # A page that is not scheduled for a while must not receive all words at once.
    with docs_server(tmp_path, SSE_CHUNK_DELAY_MS="1000") as server:
        show(page, server, CALLBACKS + at_first_word)
        page.wait_for_function("document.querySelector('#answer').innerText !== ''")
        page.wait_for_timeout(1500)
    assert len(page.inner_text("#answer").split()) < len(ANSWER.split())


def test_vue(page: "Page", cut: ThreadProxy) -> None:
    show(page, cut, VUE)
    page.click("button")
    wait_for_answer(page)
    assert page.inner_text("#state") == "disconnected"


TRANSPILE = """
const ts = require("typescript");
const text = require("node:fs").readFileSync(0, "utf8");
const compilerOptions = { jsx: "react", target: "es2022", module: "es2022" };
process.stdout.write(ts.transpileModule(text, { compilerOptions }).outputText);
"""


def node(*arguments: str, text: str = "") -> str:
    command = [needs.node(), *arguments]
    done = subprocess.run(
        command,
        input=text,
        cwd=needs.NODE_CLIENTS,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_react(page: "Page", cut: ThreadProxy) -> None:
    script = node("-e", TRANSPILE, text=f'import React from "react";\n{REACT}')
    render = (
        'import { createRoot } from "react-dom/client";\n'
        'createRoot(document.querySelector("#root")).render(React.createElement(Answer));'
    )
    # The docs serve the client and the hook from the same path.
    show(page, cut, f'<div id="root"></div><script type="module">{script}\n{render}</script>')
    page.click("text=Ask")
    wait_for_answer(page)
    assert page.inner_text("#state") == "disconnected"


def test_the_ai_sdk_does_not_notice_a_cut(cut: ThreadProxy) -> None:
    client = (needs.REPOSITORY / "sse_middleware" / "client" / "sse-client.js").as_uri()
    script = AI.replace("/sse-client.js", client)
    script = script.replace('"/chat"', f'"http://127.0.0.1:{cut.port}/chat"')
    script += 'let last = "";\nawait ask("?", (text) => (last = text));\nconsole.log(last);'
    assert node("--input-type=module", "-e", script).split() == ANSWER.split()
