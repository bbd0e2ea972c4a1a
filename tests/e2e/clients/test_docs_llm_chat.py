"""The clients of docs/llm-chat.md, over connections that are cut halfway."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.docs.snippets import snippets
from tests.e2e.browser.thread_proxy import ThreadProxy, running_proxy
from tests.support import needs
from tests.support.servers import serving
from tests.support.waiting import HANG_SECONDS

PAGE = "llm-chat.md"
APP = "tests.e2e.browser.docs_app:app"
QUESTION = "to be or not to be"


@contextmanager
def served(directory: Path, snippet: int) -> Iterator[ThreadProxy]:
    environ = {"DOCS_PAGE": PAGE, "DOCS_SNIPPET": str(snippet)}
    with serving("uvicorn-httptools", APP, directory, environ) as running:
        with running_proxy(running.port) as proxy:
            yield proxy
        running.process.kill()


def in_node(program: str, server: ThreadProxy, directory: Path) -> object:
    """Run a program with the functions of the page's `fetch` loop, and return what it prints."""
    (script,) = snippets("js", PAGE)
    base = f"const base = 'http://127.0.0.1:{server.port}';\nglobalThis.token = 'ann';\n"
    path = directory / "chat.mjs"
    path.write_text(base + script.replace("fetch(`", "fetch(base + `") + program)
    done = subprocess.run(
        [needs.program("node"), str(path)],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_fetch_loop_has_each_word_once_though_it_is_cut(tmp_path: Path) -> None:
    program = f"""
        const words = [];
        await ask("42", {{ text: "{QUESTION}" }}, (word) => words.push(word));
        const again = [];
        await follow("42", (word) => again.push(word));
        console.log(JSON.stringify([words, again].map((answer) => answer.join(""))));
    """
    with served(tmp_path, 0) as server:
        server.cut(rb"text.{1,4}be ", rb"text.{1,4}not ")
        assert in_node(program, server, tmp_path) == [f"{QUESTION} "] * 2
        assert server.discard_cuts() == 0


def test_the_fetch_loop_stops_the_model(tmp_path: Path) -> None:
    program = f"""
        const words = [];
        const stopping = (word) => words.push(word) === 2 && stop("42");
        await ask("42", {{ text: "{QUESTION}" }}, stopping);
        console.log(words.length);
    """
    with served(tmp_path, 0) as server:
        words = in_node(program, server, tmp_path)
    assert isinstance(words, int)
    assert 2 <= words < len(QUESTION.split())


def test_openais_sdk_continues_a_response_after_each_cut(tmp_path: Path) -> None:
    openai = needs.module("openai")
    (client_snippet,) = [text for text in snippets("python", PAGE) if "from openai" in text]
    names: dict[str, object] = {"__name__": "snippet"}
    exec(compile(client_snippet, PAGE, "exec"), names)
    ask = names["ask"]
    assert callable(ask)
    with served(tmp_path, 2) as server:
        server.cut(rb"delta.{1,4}be ", rb"delta.{1,4}not ")
        base = f"http://127.0.0.1:{server.port}/v1"
        with openai.OpenAI(api_key="ann", base_url=base, max_retries=0) as client:
            assert "".join(ask(client, QUESTION)) == f"{QUESTION} "
        assert server.discard_cuts() == 0
