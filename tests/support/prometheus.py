"""A real Prometheus that scrapes servers of the tests."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from tests.support import needs
from tests.support.ports import free_port
from tests.support.servers import running_process, wait_until_listening
from tests.support.waiting import HANG_SECONDS, wait_until

_SCRAPE_SECONDS = 0.2


class Prometheus:
    """A Prometheus that runs.

    Args:
        url: its address.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def until_ready(self) -> None:
        """Wait until it responds to queries."""
        wait_until(
            lambda: httpx.get(f"{self._url}/-/ready", timeout=HANG_SECONDS).status_code == 200,
            "Prometheus is not ready",
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives now, each with `metric` and `value`."""
        found: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float | None:
        """Return the value of an expression that gives one series at most."""
        series = self.query(expression)
        assert len(series) <= 1, series
        return float(series[0]["value"][1]) if series else None

    def until(self, expression: str, expected: float) -> None:
        """Wait until an expression has a value."""
        wait_until(
            lambda: self.value(expression) == expected,
            lambda: f"{expression} is {self.value(expression)}, not {expected}",
        )

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """Return the exemplars of the series that an expression selects."""
        series = self._get("query_exemplars", query=expression, start="0", end="4000000000")
        return [exemplar for one in series for exemplar in one["exemplars"]]

    def _get(self, name: str, **parameters: str) -> Any:
        response = httpx.get(f"{self._url}/api/v1/{name}", params=parameters, timeout=HANG_SECONDS)
        assert response.status_code == 200, response.text
        return response.json()["data"]


@contextmanager
def scraping(directory: Path, *ports: int) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes the servers on these ports."""
    port = free_port()
    config = directory / "prometheus.yml"
    interval = f"{round(1000 * _SCRAPE_SECONDS)}ms"
    targets = [f"127.0.0.1:{number}" for number in ports]
    job = {
        "job_name": "app",
        "scrape_interval": interval,
        "scrape_timeout": interval,
        "static_configs": [{"targets": targets}],
    }
    config.write_text(json.dumps({"scrape_configs": [job]}))  # JSON is YAML
    command = [
        needs.program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    with running_process(command, directory / "prometheus.log") as (process, log):
        wait_until_listening(port, process, log)
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        prometheus.until_ready()
        prometheus.until("count(up == 1)", len(ports))
        yield prometheus
