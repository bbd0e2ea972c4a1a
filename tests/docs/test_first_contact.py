"""What a newcomer sees first: the README, the quickstart, and the first snippets of the pages."""

import asyncio
import json
import re
import subprocess
from typing import Any
from xml.etree import ElementTree as ET

from sse_middleware.testing import EVENTSOURCE_HEADERS
from tests.docs.snippets import DOCS, PAGES, snippets, snippets_of
from tests.docs.test_docs import run
from tests.support import needs
from tests.support.asgi import Exchange, http_scope, running
from tests.support.waiting import HANG_SECONDS

README = PAGES[0]
ANN = [(b"authorization", b"Bearer ann")]
JSON = [(b"content-type", b"application/json")]
BROWSER_CLIENT = [(b"accept", b"text/event-stream;events=named"), *JSON]


def app_of(page: str, number: int = 0) -> Any:
    return run(snippets("python", page)[number])["app"]


async def ask(app: Any, scope: dict[str, Any], body: bytes = b"") -> Exchange:
    """Run a request to the end of its response."""
    exchange = Exchange(http_scope(**scope), body=body)
    async with asyncio.timeout(HANG_SECONDS), running(app, exchange):
        await exchange.until_end()
    return exchange


async def cut_and_return(
    app: Any, opening: dict[str, Any], returning: dict[str, Any], body: bytes = b""
) -> tuple[Exchange, Exchange]:
    """Open a stream, leave it after its first event, and return to it; `returning` may be empty."""
    first = Exchange(http_scope(**opening), body=body)
    async with asyncio.timeout(HANG_SECONDS), running(app, first):
        await first.until("message")
        first.disconnect()
        if not returning:
            last_id = first.last_event_id.encode()
            headers = [*opening["headers"], (b"last-event-id", last_id)]
            returning = {**opening, "headers": headers}
        return first, await ask(app, returning, body)


def data(*exchanges: Exchange) -> list[Any]:
    events = [event for exchange in exchanges for event in exchange.events]
    return [json.loads(event.data) for event in events if event.event == "message"]


def test_the_first_snippet_of_the_readme_continues_after_a_cut_and_stops() -> None:
    (snippet, *_) = snippets_of(README, "python")
    app = run(snippet.text)["app"]
    live: dict[str, Any] = {"path": "/chats/42/live", "headers": ANN}
    post: dict[str, Any] = {"path": "/chats/42", "method": "POST", "headers": ANN}

    async def story() -> None:
        returning = {**live, "query_string": b"after=1"}
        answers = await cut_and_return(app, post, returning)
        assert data(*answers) == [{"text": word} for word in ("to", "be", "continued")]
        async with asyncio.timeout(HANG_SECONDS), running(app, Exchange(http_scope(**post))) as run:
            await run.until("message")
            assert (await ask(app, {**live, "method": "DELETE"})).status == 204
            assert run.task is not None
            await asyncio.wait([run.task])
        assert len(run.events) == 1, "the model does not continue"

    asyncio.run(story())


def test_the_chat_of_the_quickstart_continues_after_a_cut() -> None:
    app = app_of("quickstart.md")
    post = {"path": "/chat", "method": "POST", "headers": BROWSER_CLIENT}
    answers = asyncio.run(cut_and_return(app, post, {}, b'{"count_to": "3"}'))
    assert data(*answers) == [{"text": f"{number} "} for number in (1, 2, 3)]
    assert answers[1].names[-1] == "complete"


def test_the_quickstart_takes_about_forty_lines() -> None:
    blocks = snippets_of(DOCS / "quickstart.md", "python", "html")
    lines = [line for block in blocks for line in block.text.splitlines() if line.strip()]
    assert len(lines) <= 45


def test_an_eventsource_continues_and_is_stopped_by_a_204_after_the_end() -> None:
    app = app_of("eventsource.md")
    request = {"path": "/answers", "headers": EVENTSOURCE_HEADERS}

    async def story() -> tuple[tuple[Exchange, Exchange], Exchange]:
        answers = await cut_and_return(app, request, {})
        ended = (b"last-event-id", answers[1].last_event_id.encode())
        return answers, await ask(app, {**request, "headers": [*EVENTSOURCE_HEADERS, ended]})

    answers, again = asyncio.run(story())
    assert [item["word"] for item in data(*answers)] == ["to", "be", "continued"]
    assert again.status == 204


def test_the_first_snippet_for_an_eventsource_closes_it() -> None:
    (first, *_) = snippets_of(DOCS / "eventsource.md", "html", "js", "python")
    assert '"complete", () => source.close()' in first.text


def test_each_picture_has_a_title_and_colours_for_both_modes() -> None:
    pictures = sorted((DOCS / "images").glob("*.svg"))
    assert pictures
    for path in pictures:
        text = path.read_text()
        names = [child.tag.rpartition("}")[2] for child in ET.fromstring(text)]
        assert names[:2] == ["title", "desc"]
        assert "prefers-color-scheme: dark" in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


SCRIPTS = [
    snippet._replace(text=text)
    for path in PAGES
    for snippet in snippets_of(path, "js", "html")
    for text in (
        [snippet.text]
        if snippet.language == "js"
        else re.findall(r"<script[^>]*>(.*?)</script>", snippet.text, re.DOTALL)
    )
]
PARSE = """
const { SourceTextModule } = require("node:vm");
const texts = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const parse = (text) => {
  try {
    new SourceTextModule(text);
  } catch (error) {
    return String(error);
  }
};
console.log(JSON.stringify(texts.map((text) => parse(text) ?? null)));
"""


def errors_of(*texts: str) -> list[str | None]:
    """Return the syntax error of each module, `None` for a correct one, as node finds them."""
    command = [needs.program("node"), "--no-warnings", "--experimental-vm-modules", "-e", PARSE]
    done = subprocess.run(
        command,
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    found: list[str | None] = json.loads(done.stdout)
    return found


def test_the_snippets_for_browsers_and_node_are_javascript() -> None:
    errors = errors_of(*(script.text for script in SCRIPTS))
    assert {s.name: e for s, e in zip(SCRIPTS, errors, strict=True) if e is not None} == {}
    assert len(SCRIPTS) > 10
    (error,) = errors_of("const (")
    assert "SyntaxError" in str(error)
