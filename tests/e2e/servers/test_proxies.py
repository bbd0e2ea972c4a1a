"""The configurations of docs/deployment.md, in front of two workers that share nothing."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.support.needs import program
from tests.support.ports import free_port
from tests.support.servers import running_process, serving, wait_until_listening

DOCUMENT = Path(__file__).parents[3] / "docs" / "deployment.md"
EVENTSOURCE = {"accept": "text/event-stream", "cache-control": "no-cache"}
APP = "tests.e2e.servers.app:app"
IDLE_SECONDS = 1
"""In place of the minute of the documents, so that silence is told soon."""


def configured(proxy: str, ports: dict[str, int]) -> str:
    """Return the configuration of the documents, with other ports and a short patience."""
    found = re.search(rf"^```{proxy}\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    text = re.sub(r"\b60s\b", f"{IDLE_SECONDS}s", found[1])
    for told, port in ports.items():
        assert f"127.0.0.1:{told}" in text
        text = text.replace(f"127.0.0.1:{told}", f"127.0.0.1:{port}")
    return text


def nginx(directory: Path, text: str) -> list[str]:
    path = directory / "nginx.conf"
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path.write_text(
        f"daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{text}}}\n"
    )
    return [program("nginx"), "-c", str(path), "-p", str(directory)]


def haproxy(directory: Path, text: str) -> list[str]:
    path = directory / "haproxy.cfg"
    path.write_text(text)
    return [program("haproxy"), "-db", "-f", str(path)]


PROXIES: dict[str, Callable[[Path, str], list[str]]] = {"nginx": nginx, "haproxy": haproxy}


@contextmanager
def behind(proxy: str, directory: Path, **environ: str) -> Iterator[str]:
    """Run two workers behind a proxy and give its URL."""
    port = free_port()
    with ExitStack() as stack:
        workers = []
        for number in ("one", "two"):
            place = directory / number
            place.mkdir()
            serving_one = serving("uvicorn-httptools", APP, place, environ)
            workers.append(stack.enter_context(serving_one))
        ports = {"8080": port, "8001": workers[0].port, "8002": workers[1].port}
        command = PROXIES[proxy](directory, configured(proxy, ports))
        log = directory / "proxy.log"
        process, log = stack.enter_context(running_process(command, log))
        wait_until_listening(port, process, log)
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("proxy", PROXIES)
def test_events_pass_a_proxy_when_they_are_sent_and_heartbeats_keep_it_awake(
    proxy: str, tmp_path: Path
) -> None:
    with behind(proxy, tmp_path, SSE_HEARTBEAT_INTERVAL="0.3") as proxied:
        url = f"{proxied}/count?n=2&pause=2.5"
        parser, arrived = EventParser(), list[tuple[float, Event]]()
        with httpx.stream("GET", url, headers=EVENTSOURCE, timeout=20) as response:
            for chunk in response.iter_raw():
                arrived += [(time.monotonic(), event) for event in parser.feed(chunk)]
    numbers = [at for at, event in arrived if event.event == "message"]
    assert arrived[-1][1].event == "complete"
    assert 2.2 < numbers[1] - numbers[0] < 3
    assert response.headers["x-trace-id"]


@pytest.mark.parametrize("proxy", PROXIES)
def test_without_heartbeats_a_proxy_cuts_a_silent_stream(proxy: str, tmp_path: Path) -> None:
    with behind(proxy, tmp_path, SSE_HEARTBEAT_INTERVAL="off") as proxied:
        url = f"{proxied}/count?n=2&pause=3"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(url, headers=EVENTSOURCE, timeout=20)
