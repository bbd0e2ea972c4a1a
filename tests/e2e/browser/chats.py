"""Pages of one chat, which reach either of two workers, and what they show."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.e2e.browser.thread_proxy import ThreadProxy, running_proxy
from tests.support import needs
from tests.support.named_runs import NamedRuns, named_runs
from tests.support.waiting import HANG_SECONDS

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

ONE_REQUEST_PER_CONNECTION = {"UVICORN_TIMEOUT_KEEP_ALIVE": "0"}
"""So that a proxy can lead each request to another worker."""


class Balanced:
    """A proxy that leads each request to one of two workers.

    Attributes:
        proxy: the proxy.
        runs: the workers.
    """

    def __init__(self, proxy: ThreadProxy, runs: NamedRuns) -> None:
        self.proxy = proxy
        self.runs = runs
        self.url = f"http://127.0.0.1:{proxy.port}"

    def lead_to(self, worker: int) -> None:
        """Lead the next requests to a worker."""
        self.proxy.server_port = self.runs.ports[worker]


@contextmanager
def balanced(directory: Path, **environ: str) -> Iterator[Balanced]:
    """Run two workers and a proxy in front of them until the block ends."""
    with (
        named_runs(directory, **ONE_REQUEST_PER_CONNECTION, **environ) as runs,
        running_proxy(runs.ports[0]) as proxy,
    ):
        yield Balanced(proxy, runs)


def bundle(script: str, directory: Path, **modules: str) -> str:
    """Return a script as one that a page can load, with its packages.

    Args:
        script: the name of its file, which is beside those for node.
        directory: an empty one.
        **modules: the sources of modules that it imports by these names.
    """
    needs.node()
    packages = needs.NODE_CLIENTS / "node_modules"
    program = packages / ".bin" / "esbuild"
    if not program.exists():
        needs.missing("esbuild is not installed: npm install --prefix tests/e2e/clients")
    command = [str(program), script, "--bundle", "--format=esm", "--loader:.mjs=jsx"]
    command.append("--log-level=warning")
    command.append('--define:process.env.NODE_ENV="development"')
    for name, source in modules.items():
        path = directory / f"{name}.mjs"
        path.write_text(source)
        command.append(f"--alias:{name}={path}")
    done = subprocess.run(
        command,
        cwd=needs.NODE_CLIENTS,
        env={**os.environ, "NODE_PATH": str(packages)},
        capture_output=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


class Chat:
    """A page with a chat of the AI SDK.

    Args:
        page: a page of the browser.
        balanced: the workers.
        name: the id of the chat.
        script: the bundled script of the page.
        query: that of the requests for answers, which sets their pace.
    """

    def __init__(
        self, page: "Page", balanced: Balanced, name: str, *, script: str, query: str = ""
    ) -> None:
        self.page = page
        self._balanced = balanced
        self._name = name
        self._script = script
        self._pace = f"?{query}"
        page.route("**/page.js", lambda it: it.fulfill(body=script, content_type="text/javascript"))

    def other_tab(self) -> "Chat":
        """Return the same chat in a new page, which is not loaded yet."""
        tab = self.page.context.new_page()
        return Chat(tab, self._balanced, self._name, script=self._script)

    def load(self, worker: int, *messages: dict[str, Any]) -> None:
        """Load the page from a worker, or reload it; `messages` are those that it shows at once."""
        self._balanced.lead_to(worker)
        self.page.goto(f"{self._balanced.url}/page")
        self.page.wait_for_function("window.ready")
        options = {"id": self._name, "pace": self._pace, "messages": messages}
        self.page.evaluate("mount", options)
        self.page.wait_for_function("window.chat")

    def send(self) -> None:
        self.page.evaluate("chat.sendMessage({ text: 'hello' }), undefined")

    def wait(self, condition: str) -> None:
        """Wait until a condition of `chat` and `answers()` holds."""
        try:
            self.page.wait_for_function(condition, polling=20)
        except Exception as exc:
            exc.add_note(f"{self.status}, {self.answers}")
            raise

    @property
    def status(self) -> str:
        status: str = self.page.evaluate("chat.status")
        return status

    @property
    def answers(self) -> list[str]:
        answers: list[str] = self.page.evaluate("answers()")
        return answers


def log_in(browser: "BrowserContext", balanced: Balanced, user: str) -> None:
    """Give the pages of a browser the cookie of a user."""
    browser.add_cookies([{"name": "user", "value": user, "url": balanced.url}])
