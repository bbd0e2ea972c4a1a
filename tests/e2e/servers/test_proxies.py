"""The configurations of docs/deployment.md, with two workers that share nothing."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.support.ports import free_port
from tests.support.proxies import PROXIES, configured
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import Server, running_process, serving, wait_until_listening
from tests.support.waiting import HANG_SECONDS

APP = "tests.e2e.servers.app:app"
IDLE_SECONDS = 2
"""The timeout of the proxies; the documents set 60 s."""


class Proxied(NamedTuple):
    """Two workers with a proxy in front of them."""

    url: str
    workers: list[Server]


@contextmanager
def proxied(proxy: str, directory: Path, *, app: str = APP, **environ: str) -> Iterator[Proxied]:
    """Run two workers and a proxy."""
    port = free_port()
    with ExitStack() as stack:
        workers = []
        for number in ("one", "two"):
            place = directory / number
            place.mkdir()
            serving_one = serving("uvicorn-httptools", app, place, environ)
            workers.append(stack.enter_context(serving_one))
        ports = {"8080": port, "8001": workers[0].port, "8002": workers[1].port}
        command = PROXIES[proxy](directory, configured(proxy, ports, idle_seconds=IDLE_SECONDS))
        log = directory / "proxy.log"
        process, log = stack.enter_context(running_process(command, log))
        wait_until_listening(port, process, log)
        yield Proxied(f"http://127.0.0.1:{port}", workers)


@pytest.mark.parametrize("proxy", PROXIES)
def test_an_event_passes_a_proxy_before_the_next_is_sent_and_heartbeats_prevent_its_timeout(
    proxy: str, tmp_path: Path
) -> None:
    heartbeats = {"SSE_HEARTBEAT_INTERVAL": str(IDLE_SECONDS / 10)}
    with proxied(proxy, tmp_path, **heartbeats) as site:
        parser, events = EventParser(), list[Event]()
        url = f"{site.url}/wait-for-each"
        with httpx.stream("GET", url, headers=EVENTSOURCE, timeout=HANG_SECONDS) as response:
            chunks = response.iter_raw()
            for number in range(3):
                if number == 2:
                    time.sleep(1.5 * IDLE_SECONDS)
                for worker in site.workers:  # one of them has the stream
                    httpx.get(f"{worker.url}/ask", timeout=HANG_SECONDS)
                while str(number) not in [event.data for event in events]:
                    events += parser.feed(next(chunks))
            for chunk in chunks:
                events += parser.feed(chunk)
    assert [event.data for event in events if event.event == "message"] == ["0", "1", "2"]
    assert events[-1].event == "complete"
    assert response.headers["x-trace-id"]


@pytest.mark.parametrize("proxy", PROXIES)
def test_without_heartbeats_a_proxy_cuts_a_silent_stream(proxy: str, tmp_path: Path) -> None:
    environ = {"SSE_HEARTBEAT_INTERVAL": "off", "SSE_LINGER_SECONDS": "0"}
    with proxied(proxy, tmp_path, **environ) as site:
        url = f"{site.url}/count?n=2&pause={HANG_SECONDS}"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(url, headers=EVENTSOURCE, timeout=HANG_SECONDS)
