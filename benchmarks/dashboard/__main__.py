"""Draw the dashboard of docs/observability from real data.

    python -m benchmarks.dashboard [--seconds 150]

A real Prometheus scrapes the example, under the load of some visitors, with each query of the
dashboard: docs/observability/dashboard.svg is written anew. It needs the programs `prometheus` and
`redis-server`, and nothing that the example and the tests do not need.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx2
import redis

from benchmarks.dashboard.drawing import Series, Times, draw
from benchmarks.dashboard.visitors import visit_until_cancelled
from benchmarks.processes import BenchmarkError, app_environment, redis_server

DOCS: Final = Path(__file__).parents[2] / "docs" / "observability"
_VISITORS: Final = 12
_STEP_SECONDS: Final = 3
_FIRST_SECONDS: Final = 25
"""The visits are not shown before their rates are known."""
_VARIABLES: Final = {"$__rate_interval": "20s", "$route": ".*", "$family": ".*"}
_SETTINGS: Final = {
    "SSE_ROLLOUT_PERCENT": "50",
    "SSE_MAX_STREAMS": "20",
    "SSE_LIMIT_ACTION": "reject",
    "SSE_LINGER_SECONDS": "5",
    "SSE_USAGE_COST": "1",
}


def main() -> None:
    """Run the example, and write the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=150, help="how long the example is visited")
    seconds: int = parser.parse_args().seconds
    dashboard = json.loads((DOCS / "dashboard.json").read_text(encoding="utf-8"))
    with redis_server() as redis_url, _serving(redis_url) as port, _prometheus(port) as url:
        asyncio.run(_visit(f"http://127.0.0.1:{port}", redis_url, seconds))
        now = time.time()
        times = Times(now - seconds + _FIRST_SECONDS, now)
        image = draw(dashboard, partial(_series_of, url, times), times)
    (DOCS / "dashboard.svg").write_text(image, encoding="utf-8")


async def _visit(url: str, redis_url: str, seconds: int) -> None:
    """Visit the example; in the middle, Redis drops all connections."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as group:
            group.create_task(visit_until_cancelled(url, _VISITORS))
            await asyncio.sleep(seconds / 2)
            with redis.Redis.from_url(redis_url) as client:
                client.config_set("maxclients", 1)
                client.client_kill_filter(_type="normal", skipme=True)
                await asyncio.sleep(3)
                client.config_set("maxclients", 1000)


def _series_of(url: str, times: Times, target: Mapping[str, Any]) -> list[Series]:
    """Return what a query gives during a time."""
    query = target["expr"]
    for name, value in _VARIABLES.items():
        query = query.replace(name, value)
    parameters = {"query": query, "start": times.start, "end": times.end, "step": _STEP_SECONDS}
    response = httpx2.get(f"{url}/api/v1/query_range", params=parameters).raise_for_status()
    found = [
        Series(
            _legend(target["legendFormat"], one["metric"]),
            [(at, float(value)) for at, value in one["values"] if value not in ("NaN", "+Inf")],
        )
        for one in response.json()["data"]["result"]
    ]
    return sorted((one for one in found if one.points), key=lambda one: one.name)


def _legend(text: str, labels: Mapping[str, str]) -> str:
    for name, value in labels.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


@contextmanager
def _serving(redis_url: str) -> Iterator[int]:
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", "--log-level", "critical", "--port", str(port)]
    environ = app_environment(redis_url=redis_url) | _SETTINGS
    with _running([*command, "benchmarks.dashboard.app:app"], port, environ):
        yield port


@contextmanager
def _prometheus(scraped: int) -> Iterator[str]:
    program = shutil.which("prometheus")
    if program is None:
        raise BenchmarkError("prometheus is not installed")
    port = _free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "prometheus.yml"
        job = {
            "job_name": "example",
            "scrape_interval": "1s",
            "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}],
        }
        config.write_text(json.dumps({"scrape_configs": [job]}), encoding="utf-8")  # it is YAML
        arguments = [
            f"--config.file={config}",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=error",
        ]
        with _running([program, *arguments], port, os.environ):
            yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: list[str], port: int, environ: Mapping[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env={**environ})
    try:
        while not _listens(port):
            if process.poll() is not None:
                raise BenchmarkError(f"{command[0]} has ended")
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


if __name__ == "__main__":
    main()
