"""The documents: their snippets run, and their tables and commands are correct."""

import asyncio
import hmac
import io
import json
import logging
import re
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sse_middleware.__main__ import markdown
from sse_middleware.channels import subscribe
from tests.docs.snippets import PAGES, snippets_of
from tests.support.asgi import body, handle, stream_start
from tests.support.middleware import marking

IDS = ("trace_id", "stream_id")
ROOT = Path(__file__).parents[2]
RUN_ELSEWHERE = ("frameworks", "migration", "recipes")
"""Pages whose snippets a file beside this one runs, with the packages that they need."""
SNIPPETS = [
    pytest.param(snippet.text, id=snippet.name)
    for path in PAGES
    if path.stem not in RUN_ELSEWHERE
    for snippet in snippets_of(path, "python")
    if "from openai" not in snippet.text  # test_docs_of_clients.py
]


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Celery:
    """A substitute for Celery; its tasks are functions, as when run eagerly."""

    def __init__(self, *_: object, **__: object) -> None:
        self.task = lambda function: function


@pytest.fixture(autouse=True)
def _celery(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("celery")
    module.Celery = Celery  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "celery", module)


def run(snippet: str) -> dict[str, Any]:
    if "set_tracer_provider" in snippet:
        pytest.skip("tests/e2e/observability runs it: a process has one tracer provider")
    for extra in ("fastapi", "redis", "httpx2", "structlog", "genai_prices"):
        if extra in snippet:
            pytest.importorskip(extra, reason=f"the minimal environment has no {extra}")
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(snippet, "snippet", "exec"), names)
    return names


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet: str) -> None:
    run(snippet)


def snippet_with(text: str) -> dict[str, Any]:
    (found,) = [snippet.values[0] for snippet in SNIPPETS if text in str(snippet.values[0])]
    return run(str(found))


def published(session_id: str) -> list[tuple[str, Any]]:
    async def read() -> list[tuple[str, Any]]:
        return [(event.event, event.json()) async for event in subscribe(session_id)]

    return asyncio.run(read())


@pytest.mark.parametrize("name", ["JSONFormatter", "structlog.configure"])
def test_log_lines_are_json_with_the_ids_of_the_stream(name: str) -> None:
    handler, output = snippet_with(name)["handler"], io.StringIO()
    handler.setStream(output)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        logging.getLogger("app").info("half of %d", 2, extra={"page": 1})
        await send(body(b"data: 1\n\n", more=False))

    logging.getLogger("outside").warning("no request")
    exchange = asyncio.run(handle(marking(app)))
    lines = [json.loads(line) for line in output.getvalue().splitlines()]
    ids = {name: exchange.headers[f"x-{name.replace('_', '-')}".encode()] for name in IDS}
    expected = {name: value.decode() for name, value in ids.items()}
    texts = {line.get("message", line.get("event")): line for line in lines}
    of_app = texts["half of 2"]
    assert of_app["page"] == 1
    assert {name: of_app[name] for name in IDS} == expected
    assert not texts["no request"].get("trace_id")
    (of_stream,) = [line for text, line in texts.items() if text.startswith("stream ")]
    assert of_stream["sse"]["outcome"] == "finished"
    assert {name: of_stream["sse"][name] for name in IDS} == expected


def test_the_celery_task_publishes_and_does_a_job_once() -> None:
    session_id = secrets.token_urlsafe()
    names = snippet_with("write_report")
    for _ in range(2):
        names["write_report"](session_id, 2)
    assert published(session_id) == [
        ("worker_ack", {}),
        ("page", {"number": 0}),
        ("page", {"number": 1}),
        ("complete", {"reason": "finished"}),
    ]


def test_the_thread_publishes() -> None:
    session_id = secrets.token_urlsafe()
    snippet_with("threading.Thread")["count"](session_id)
    assert [event for event, _ in published(session_id)] == [
        "worker_ack",
        *["number"] * 3,
        "complete",
    ]


class Consumer:
    """A substitute for a Kafka consumer, which delivers each message twice."""

    def __init__(self, session_id: str) -> None:
        self._session_id = session_id
        self.commits = 0

    async def __aiter__(self) -> AsyncIterator[SimpleNamespace]:
        for offset, event in enumerate(("worker_ack", "progress", "complete")):
            value = f'{{"type": "{event}", "payload": {offset}}}'.encode()
            for _ in range(2):
                yield SimpleNamespace(
                    topic="t",
                    partition=0,
                    offset=offset,
                    key=self._session_id.encode(),
                    value=value,
                )

    async def commit(self) -> None:
        self.commits += 1


def test_the_kafka_consumer_publishes_a_repeated_message_once() -> None:
    consumer = Consumer(secrets.token_urlsafe())
    asyncio.run(snippet_with("message.offset")["forward"](consumer))
    assert published(consumer._session_id) == [
        ("worker_ack", 0),
        ("progress", 1),
        ("complete", 2),
    ]
    assert consumer.commits == 6


def test_ci_calls_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"^Run the tests:\n\n```sh\n(.*?)\n```", readme, re.MULTILINE)
    assert found is not None
    assert found[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_settings_page_has_the_generated_tables() -> None:
    assert markdown() in (ROOT / "docs" / "settings.md").read_text()


def test_the_oldest_python_of_the_metadata_is_the_oldest_that_runs() -> None:
    assert sys.version_info >= (3, 11)
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()


def test_the_identity_in_the_docs_cannot_be_forged() -> None:
    names = snippet_with("COOKIE_KEY")
    identify, key = names["identify"], names["KEY"]
    signature = hmac.digest(key, b"ann", "sha256").hex()

    def identity(header: bytes, value: str) -> object:
        return identify({"type": "http", "headers": [(header, value.encode())]})

    assert identity(b"cookie", f"user=ann.{signature}") == "ann"
    for cookie in ("", "user=ann", "user=ann.", f"user=bob.{signature}", "user=ann.\xe9", "user=."):
        assert identity(b"cookie", cookie) is None
    assert identity(b"x-user", "ann") is None
    assert not any('b"x-user"' in path.read_text() for path in PAGES)


def test_troubleshooting_has_messages_of_the_package() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Logs and errors")[2]
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    package = "".join(path.read_text() for path in (ROOT / "sse_middleware").rglob("*.py"))
    joined = re.sub(r'"\n\s*f?"', "", package)
    assert [message for message in quoted if message not in joined] == []
    assert len(quoted) > 5
