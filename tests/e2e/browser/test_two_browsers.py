"""Two browsers on one name: both receive the bytes of the app, from different workers."""

import hashlib
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser.chats import Balanced, balanced, log_in
from tests.support.answers import numbers, random_answer

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

FOLLOW = """(path) => {
  const read = async () => {
    const response = await fetch(path);
    const digest = await crypto.subtle.digest("SHA-256", await response.arrayBuffer());
    const bytes = [...new Uint8Array(digest)];
    return [response.status, bytes.map((byte) => byte.toString(16).padStart(2, "0")).join("")];
  };
  window.done = read();
}"""


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with balanced(tmp_path_factory.mktemp("browsers")) as running:
        yield running


def page_of(browser: "BrowserContext", workers: Balanced, user: str) -> "Page":
    """Return a page of another browser, with the login of a user."""
    assert browser.browser is not None
    other = browser.browser.new_context()
    log_in(other, workers, user)
    page = other.new_page()
    page.route("**/page.js", lambda it: it.fulfill(body="", content_type="text/javascript"))
    page.goto(f"{workers.url}/page")
    return page


@pytest.mark.parametrize("seed", ["", "browsers"], ids=["usual", "any bytes"])
def test_two_browsers_receive_the_same_bytes(
    browser: "BrowserContext", workers: Balanced, seed: str
) -> None:
    name = secrets.token_hex(4)
    workers.lead_to(0)
    opener, *followers = [page_of(browser, workers, "ann") for _ in range(3)]
    stranger = page_of(browser, workers, "bob")
    opener.evaluate(f"""() => {{
        window.done = fetch("/answers/{name}?hold=1&seed={seed}", {{ method: "POST" }});
    }}""")
    workers.runs.wait_until_known(f"/answers/{name}/live", {"cookie": "user=ann"})
    resumes = workers.runs.resumes()
    for number, page in enumerate((*followers, stranger)):
        workers.lead_to(number % 2)
        page.evaluate(FOLLOW, f"/answers/{name}/live")
    assert stranger.evaluate("done")[0] == 204
    workers.runs.wait_for_resumes(resumes + len(followers))
    workers.runs.release(f"answer:{name}")
    whole = random_answer(seed) if seed else b"".join(numbers(30))
    wanted = [200, hashlib.sha256(whole).hexdigest()]
    assert [page.evaluate("done") for page in followers] == [wanted, wanted]
    workers.runs.wait_for(f"answer:{name}", ["finished"], [])
    for page in (opener, *followers, stranger):
        page.context.close()
