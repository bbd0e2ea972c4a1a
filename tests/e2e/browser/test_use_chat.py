"""`useChat({ resume: true })` of the AI SDK, with the transport of the docs, and two workers."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.docs.snippets import snippets
from tests.e2e.browser.chats import Balanced, Chat, balanced, bundle, log_in
from tests.e2e.clients.resume_app import TEXT, WORDS

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

USER = {"id": "1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}
SHOWN = 7
"""The number of words that a page shows before the answer is held."""
HOLD = f"hold={SHOWN + 2}"
"""Two events precede the words."""
SHOWS = f"answers().join() === {''.join(WORDS[:SHOWN])!r}"
SHOWS_ALL = f"chat.status === 'ready' && answers().join() === {TEXT!r}"
IDLE = "chat.status === 'ready' && answers().length === 0"


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with balanced(tmp_path_factory.mktemp("chats")) as running:
        yield running


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    transport = snippets("js")[2]
    return bundle("use-chat.mjs", tmp_path_factory.mktemp("script"), transport=transport)


@pytest.fixture
def name() -> str:
    return secrets.token_hex(4)


class Open(Protocol):
    """Open the chat of the test in a page, at the first worker."""

    def __call__(self, page: "Page", query: str = "", /) -> Chat:
        """Return it; `query` sets the pace of its answers."""


@pytest.fixture
def opened(browser: "BrowserContext", workers: Balanced, name: str, script: str) -> Open:
    log_in(browser, workers, "ann")

    def open_chat(page: "Page", query: str = "", /) -> Chat:
        chat = Chat(page, workers, name, script=script, query=query)
        chat.load(0)
        chat.wait(IDLE)
        return chat

    return open_chat


def test_a_reload_in_the_middle_continues_the_answer_at_another_worker(
    page: "Page", workers: Balanced, name: str, opened: Open
) -> None:
    chat = opened(page, HOLD)
    chat.send()
    chat.wait(SHOWS)
    chat.load(1, USER)
    chat.wait(SHOWS)
    assert chat.status == "streaming"
    workers.runs.release(f"chat:{name}")
    chat.wait(SHOWS_ALL)
    workers.runs.wait_for(f"chat:{name}", ["finished"], [])
    chat.load(1)
    chat.wait(IDLE)


def test_a_reload_during_the_thinking_time_gets_the_whole_answer(
    page: "Page", workers: Balanced, name: str, opened: Open
) -> None:
    chat = opened(page, "hold=0")
    chat.send()
    workers.runs.wait_until_known(f"/api/chat/{name}/stream", {"cookie": "user=ann"})
    assert chat.status == "submitted"
    for worker in (1, 0, 1):
        chat.load(worker, USER)
        chat.wait("chat.status === 'submitted'")
    workers.runs.release(f"chat:{name}")
    chat.wait(SHOWS_ALL)
    workers.runs.wait_for(f"chat:{name}", ["finished"], [])


def test_a_second_tab_follows_the_answer_of_the_first(
    page: "Page", workers: Balanced, name: str, opened: Open
) -> None:
    first = opened(page, HOLD)
    first.send()
    first.wait(SHOWS)
    second = first.other_tab()
    second.load(1, USER)
    second.wait(SHOWS)
    workers.runs.release(f"chat:{name}")
    for tab in (first, second):
        tab.wait(SHOWS_ALL)
    second.page.close()
    workers.runs.wait_for(f"chat:{name}", ["finished"], [])


STOP = """async ([name, method]) => {
  chat.stop();
  return (await fetch(`/api/chat/${name}/stream`, { method })).status;
}"""


@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_a_stop_at_another_worker_ends_the_app_and_nothing_is_resumed(
    page: "Page", workers: Balanced, name: str, opened: Open, method: str
) -> None:
    chat = opened(page, HOLD)
    chat.send()
    chat.wait(SHOWS)
    workers.lead_to(1)
    assert page.evaluate(STOP, [name, method]) == 204
    workers.runs.wait_for(f"chat:{name}", ["stopped"], [])
    chat.wait("chat.status === 'ready'")
    assert chat.answers == ["".join(WORDS[:SHOWN])]
    for worker in (0, 1):
        chat.load(worker, USER)
        chat.wait(IDLE)


def test_a_second_tab_sees_that_the_answer_was_stopped(
    page: "Page", workers: Balanced, name: str, opened: Open
) -> None:
    first = opened(page, HOLD)
    first.send()
    first.wait(SHOWS)
    second = first.other_tab()
    second.load(1, USER)
    second.wait(SHOWS)
    assert page.evaluate(STOP, [name, "DELETE"]) == 204
    workers.runs.wait_for(f"chat:{name}", ["stopped"], [])
    second.wait("chat.status === 'error'")  # it has no end of the answer
    second.page.evaluate("chat.resumeStream(), undefined")
    second.wait("chat.status === 'ready'")
    assert second.answers == ["".join(WORDS[:SHOWN])]
    second.page.close()


def test_an_answer_that_was_cut_is_resumed_without_a_repeat(
    page: "Page", workers: Balanced, name: str, opened: Open
) -> None:
    chat = opened(page)
    workers.proxy.cut(rb"word5 .*\n\n", rb"word20 ")
    chat.send()
    for worker in (1, 0):
        chat.wait("chat.status === 'error'")
        workers.lead_to(worker)
        page.evaluate("chat.resumeStream(), undefined")
        chat.wait("chat.status !== 'error'")
    chat.wait(SHOWS_ALL)
    assert workers.proxy.discard_cuts() == 0
    workers.runs.wait_for(f"chat:{name}", ["finished"], [])


def test_the_chat_of_another_user_is_another_one(
    page: "Page", workers: Balanced, name: str, browser: "BrowserContext", opened: Open
) -> None:
    chat = opened(page, HOLD)
    chat.send()
    chat.wait(SHOWS)
    log_in(browser, workers, "bob")
    chat.load(1)
    chat.wait(IDLE)
    assert page.evaluate(STOP, [name, "DELETE"]) == 204
    assert workers.runs.of(f"chat:{name}") == [["running"], []]
    log_in(browser, workers, "ann")
    chat.load(1, USER)
    chat.wait(SHOWS)
    workers.runs.release(f"chat:{name}")
    chat.wait(SHOWS_ALL)


@pytest.mark.parametrize("hold", [0, SHOWN + 2], ids=["while it thinks", "in the middle"])
def test_an_answer_whose_worker_is_killed_is_an_error_in_a_page_that_follows_it(
    page: "Page", name: str, script: str, tmp_path: Path, hold: int
) -> None:
    with balanced(tmp_path, LEASE_SECONDS="3") as workers:
        log_in(page.context, workers, "ann")
        chat = Chat(page, workers, name, script=script, query=f"hold={hold}")
        chat.load(0)
        chat.wait(IDLE)
        chat.send()
        workers.runs.wait_until_known(f"/api/chat/{name}/stream", {"cookie": "user=ann"})
        resumes = workers.runs.resumes()
        chat.load(1, USER)
        workers.runs.wait_for_resumes(resumes + 1)
        chat.wait(SHOWS if hold else "chat.status === 'submitted'")
        workers.runs.workers[0].kill()
        chat.wait("chat.status === 'error'")
        assert chat.answers == (["".join(WORDS[:SHOWN])] if hold else [])
