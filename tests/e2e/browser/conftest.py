"""Real servers with proxies in front of them, and pages of a real browser."""

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.e2e.browser.site import APP, COMMON, UVICORN, Site
from tests.e2e.browser.thread_proxy import ThreadProxy, running_proxy
from tests.support import needs
from tests.support.servers import Server, serving
from tests.support.waiting import HANG_SECONDS

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

Start = Callable[[str, dict[str, str]], tuple[Server, ThreadProxy]]


@pytest.fixture(scope="package")
def servers(browser: "BrowserContext", tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start each server when a test needs it, and none without a browser."""
    with ExitStack() as stack:
        running: dict[str, tuple[Server, ThreadProxy]] = {}

        def start(name: str, settings: dict[str, str]) -> tuple[Server, ThreadProxy]:
            key = f"{name} {settings}"
            if key not in running:
                directory = tmp_path_factory.mktemp(name)
                server = stack.enter_context(serving(name, APP, directory, COMMON | settings))
                running[key] = server, stack.enter_context(running_proxy(server.port))
            return running[key]

        yield start
        for server, _ in running.values():
            server.process.kill()  # it would wait for endless feeds


def site_of(server: Server, proxy: ThreadProxy) -> Iterator[Site]:
    yield Site(server, proxy, secrets.token_hex(4))
    assert proxy.discard_cuts() == 0, "not all cuts were made"


@pytest.fixture
def site(request: pytest.FixtureRequest, servers: Start) -> Iterator[Site]:
    yield from site_of(*servers(getattr(request, "param", UVICORN), {}))


@pytest.fixture
def capped(servers: Start) -> Iterator[Site]:
    """A server with a cap of one second."""
    yield from site_of(*servers(UVICORN, {"SSE_STREAM_MAX_SECONDS": "1"}))


@pytest.fixture
def compressing(request: pytest.FixtureRequest, servers: Start) -> Iterator[Site]:
    """A server that sends streams in a coding."""
    yield from site_of(*servers(UVICORN, {"SSE_COMPRESSION": request.param}))


@pytest.fixture(scope="package")
def browser() -> Iterator["BrowserContext"]:
    chromium, playwright = needs.chromium(), needs.module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        launched = driver.chromium.launch(executable_path=chromium, args=quiet)
        yield launched.new_context()
        launched.close()


@pytest.fixture
def page(browser: "BrowserContext") -> Iterator["Page"]:
    complaints: list[str] = []
    opened = browser.new_page()
    opened.set_default_timeout(HANG_SECONDS * 1000)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    opened.close()
    browser.clear_cookies()
    assert complaints == []
