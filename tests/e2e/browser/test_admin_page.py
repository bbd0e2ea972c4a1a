"""The live page in a browser: it asks for the token, shows streams, and cancels one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.servers import Server, serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

TOKEN = "swordfish-swordfish"
ENVIRON = {"SSE_ADMIN_PATH": "/ops/live", "SSE_ADMIN_TOKEN": TOKEN, "SSE_ADMIN_PAYLOADS": "1"}
CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (color) => parse(color).map(linear)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return color === "rgba(0, 0, 0, 0)" ? behind(node.parentElement) : color;
  };
  return [...document.querySelectorAll("h1, h2, th, td, dt, dd, li, button, #state")]
    .filter((node) => node.checkVisibility() && node.textContent)
    .map((node) => [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a))
    .map(([lighter, darker]) => (lighter + 0.05) / (darker + 0.05));
}"""
"""Return the contrast of each text (WCAG 2.2, 1.4.3 requires 4.5)."""


@pytest.fixture(scope="module")
def server(
    browser: "BrowserContext",
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("admin")
    with serving("uvicorn-httptools", "tests.e2e.drain.app:app", directory, ENVIRON) as server:
        yield server
        server.process.kill()  # it would wait for endless feeds


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_operator_sees_a_stream_its_frames_and_cancels_it(
    server: Server, page: "Page", scheme: str
) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto(f"{server.url}/ops/live")
    page.fill("#token", "wrong-wrong-wrong")
    page.click("#login button")
    page.wait_for_selector("text=The token is wrong")
    page.fill("#token", TOKEN)
    page.click("#login button")
    page.wait_for_selector("#open >> text=sse-admin")
    page.evaluate(
        "new EventSource('/feed').addEventListener('complete',"
        " ({ data }) => { window.reason = JSON.parse(data).reason })"
    )
    page.wait_for_selector("#open >> text=/feed")
    assert min(page.evaluate(CONTRAST)) >= 4.5
    page.click("button[data-frames]")
    page.wait_for_selector("#frames-text:has-text('data: 1')")
    page.click("dialog button")
    page.click("button[data-cancel]")
    wait_until(lambda: page.evaluate("window.reason") == "cancelled", "the stream is not cancelled")
    page.wait_for_selector("#ended >> text=cancelled")
    page.reload()
    page.wait_for_selector("#ended >> text=cancelled")  # the tab keeps the token
    page.evaluate("sessionStorage.clear()")
