"""A real Prometheus scrapes the example, in one process and in several."""

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest
from prometheus_client.mmap_dict import MmapedDict

from tests.support.ports import free_port
from tests.support.prometheus import scraping
from tests.support.raw_http import EVENTSOURCE
from tests.support.servers import running_process, serving, wait_until_listening
from tests.support.waiting import HANG_SECONDS, wait_until

APP = "example_app.app:app"
LIGHT_APP = "tests.e2e.observability.light_app:app"
WORKERS = "3"
Ports = AbstractContextManager[int]


@contextmanager
def uvicorn(directory: Path, environ: dict[str, str]) -> Iterator[int]:
    more = ("--workers", WORKERS)
    with serving("uvicorn-httptools", APP, directory, environ, *more) as server:
        yield server.port


@contextmanager
def gunicorn(directory: Path, environ: dict[str, str], *more: str) -> Iterator[int]:
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "gunicorn", "-k", "asgi", "-w", WORKERS, "-b", address]
    log = directory / "gunicorn.log"
    with running_process([*command, *more, LIGHT_APP], log, environ) as (process, _):
        wait_until_listening(port, process, log)
        yield port


def gunicorn_preloading(directory: Path, environ: dict[str, str]) -> Ports:
    return gunicorn(directory, environ, "--preload")


@contextmanager
def granian(directory: Path, environ: dict[str, str]) -> Iterator[int]:
    more = ("--workers", WORKERS, "--respawn-failed-workers")
    with serving("granian", LIGHT_APP, directory, environ, *more) as server:
        yield server.port


def open_stream(port: int) -> socket.socket:
    """Open a stream of some minutes, and return its connection after the first bytes."""
    connection = socket.create_connection(("127.0.0.1", port), HANG_SECONDS)
    headers = "".join(f"{name}: {value}\r\n" for name, value in EVENTSOURCE.items())
    request = f"GET /stream/search?query=event+loop&delay_ms=2000 HTTP/1.1\r\nhost: a\r\n{headers}"
    connection.sendall(f"{request}\r\n".encode())
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    return connection


def is_open(connection: socket.socket) -> bool:
    try:
        while select.select([connection], [], [], 0)[0]:
            if not connection.recv(1 << 16):
                return False
    except ConnectionError:
        return False
    return True


def workers_with_streams(directory: Path) -> list[int]:
    """Return the processes that have open streams."""
    return [
        int(path.stem.split("_")[2])
        for path in directory.glob("gauge_livesum_*.db")
        for key, value, *_ in MmapedDict.read_all_values_from_file(  # type: ignore[no-untyped-call]
            str(path)
        )
        if "sse_streams_active" in key and value > 0
    ]


@pytest.mark.parametrize("serve", [uvicorn, gunicorn, gunicorn_preloading, granian])
def test_the_open_streams_of_all_workers_are_right_after_one_is_killed(
    serve: Callable[[Path, dict[str, str]], Ports], tmp_path: Path
) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(metrics), "SSE_STREAM_MAX_SECONDS": "600"}
    environ["SSE_LINGER_SECONDS"] = "0.5"
    with (
        serve(tmp_path, environ) as port,
        scraping(tmp_path, port) as prometheus,
        ExitStack() as stack,
    ):
        streams = [stack.enter_context(open_stream(port)) for _ in range(6)]
        while len(workers_with_streams(metrics)) < 2:
            streams.append(stack.enter_context(open_stream(port)))
        prometheus.until("sse_streams_active", len(streams))
        finished = httpx.get(
            f"http://127.0.0.1:{port}/stream/search?query=event+loop&delay_ms=0",
            headers=EVENTSOURCE,
            timeout=HANG_SECONDS,
        )
        assert finished.status_code == 200
        prometheus.until('sum(sse_streams_total{route="/stream/search",outcome="finished"})', 1)
        prometheus.until('sum(sse_time_to_first_event_seconds_count{family="eventsource"})', 1)
        os.kill(workers_with_streams(metrics)[0], signal.SIGKILL)
        wait_until(lambda: not all(map(is_open, streams)), "no connection is closed")
        wait_until(
            lambda: prometheus.value("sse_streams_active") == sum(map(is_open, streams)),
            lambda: f"{prometheus.query('sse_streams_active')}, {[*map(is_open, streams)]}",
        )
        assert any(map(is_open, streams))
        prometheus.until('sum(sse_streams_total{route="/stream/search",outcome="finished"})', 1)
        stack.close()
        prometheus.until("sse_streams_active", 0)


def test_the_trace_id_of_a_stream_is_an_exemplar(tmp_path: Path) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with (
        serving("uvicorn-httptools", APP, tmp_path) as server,
        scraping(tmp_path, server.port) as prometheus,
    ):
        httpx.get(
            f"{server.url}/stream/search?query=event+loop&delay_ms=0",
            headers={**EVENTSOURCE, "traceparent": f"00-{trace_id}-b7ad6b7169203331-01"},
            timeout=HANG_SECONDS,
        )
        found = "sse_time_to_first_event_seconds_bucket"
        wait_until(lambda: bool(prometheus.exemplars(found)), "Prometheus has no exemplar")
        assert prometheus.exemplars(found)[0]["labels"] == {"trace_id": trace_id}
