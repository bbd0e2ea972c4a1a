"""The pages of docs/quickstart.md, docs/eventsource.md and docs/llm-chat.md, in Chromium."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.docs.snippets import snippets
from tests.e2e.browser.chats import bundle
from tests.e2e.browser.thread_proxy import ThreadProxy, running_proxy
from tests.support.servers import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

APP = "tests.e2e.browser.docs_app:app"


@contextmanager
def served(directory: Path, page: str, snippet: int = 0, **environ: str) -> Iterator[ThreadProxy]:
    """Serve a Python snippet of a page through a proxy that can cut."""
    environ |= {"DOCS_PAGE": page, "DOCS_SNIPPET": str(snippet), "SSE_RETRY_MS": "100"}
    with serving("uvicorn-httptools", APP, directory, environ) as running:
        with running_proxy(running.port) as proxy:
            yield proxy
        running.process.kill()


def show(page: "Page", server: ThreadProxy, html: str) -> None:
    """Load a page of the docs from the server."""
    icon = '<link rel="icon" href="data:,">'
    address = f"http://127.0.0.1:{server.port}/"
    page.route(address, lambda it: it.fulfill(body=icon + html, content_type="text/html"))
    page.goto(address)


def wait_for_answer(page: "Page", words: list[str]) -> None:
    condition = "(last) => document.querySelector('#answer').innerText.trim().endsWith(last)"
    page.wait_for_function(condition, arg=words[-1])
    assert page.inner_text("#answer").split() == words


def test_the_page_of_the_quickstart_survives_its_cut_button(page: "Page", tmp_path: Path) -> None:
    (html,) = snippets("html", "quickstart.md")
    with served(tmp_path, "quickstart.md") as server:
        show(page, server, html)
        page.click("#ask")
        page.wait_for_function("document.querySelector('#answer').innerText.includes('3')")
        page.click("#cut")
        page.wait_for_function("document.querySelector('#state').value === 'reconnecting'")
        wait_for_answer(page, [str(number) for number in range(1, 31)])


def test_the_page_of_the_quickstart_stops_the_model(page: "Page", tmp_path: Path) -> None:
    (html,) = snippets("html", "quickstart.md")
    with served(tmp_path, "quickstart.md") as server:
        show(page, server, html)
        page.click("#ask")
        page.wait_for_function("document.querySelector('#answer').innerText.includes('2')")
        with page.expect_response(re.compile("sse_cancel")) as stopped:
            page.click("#stop")
        assert stopped.value.status == 204


def test_an_eventsource_resumes_and_closes(page: "Page", tmp_path: Path) -> None:
    (html,) = snippets("html", "eventsource.md")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    with served(tmp_path, "eventsource.md") as server:
        server.cut(rb'word": ?"to')
        show(page, server, html)
        wait_for_answer(page, ["to", "be", "continued"])
        page.wait_for_timeout(500)  # a browser that has not closed asks again after 100 ms
        assert server.discard_cuts() == 0
    assert len([url for url in requests if url.endswith("/answers")]) == 2


def test_use_chat_continues_after_a_reload(page: "Page", tmp_path: Path) -> None:
    (chat,) = snippets("jsx", "llm-chat.md")
    script = """
        import { createRoot } from "react-dom/client";
        import { createElement } from "react";
        import { Chat } from "chat";
        const root = createRoot(document.querySelector("#root"));
        root.render(createElement(Chat, { id: "42" }));
    """
    program = tmp_path / "page.mjs"
    program.write_text(script)
    text = bundle(str(program), tmp_path, chat=f'import React from "react";\n{chat}')
    # The page is loaded again before the answer has ended.
    with served(tmp_path, "llm-chat.md", 1, SSE_CHUNK_DELAY_MS="1000") as server:
        address = f"http://127.0.0.1:{server.port}"
        page.route("**/page.js", lambda it: it.fulfill(body=text, content_type="text/javascript"))
        page.context.add_cookies([{"name": "session", "value": "ann", "url": address}])
        show(page, server, '<div id="root"></div><script type="module" src="/page.js"></script>')
        page.click("text=Ask")
        page.wait_for_function("document.querySelector('.assistant')?.innerText.includes('be')")
        page.reload()
        done = "document.querySelector('.assistant')?.innerText.trim() === 'to be or not to be'"
        page.wait_for_function(done)
