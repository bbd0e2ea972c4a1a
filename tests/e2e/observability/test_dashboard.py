"""The dashboard and the alerts of the docs: each query gives data of the example, by Prometheus."""

import json
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx2 as httpx
import pytest

from sse_middleware import EventParser
from tests.support import needs
from tests.support.prometheus import Prometheus, scraping
from tests.support.raw_http import EVENTSOURCE
from tests.support.redis_server import RedisServer
from tests.support.servers import Server, serving
from tests.support.waiting import HANG_SECONDS, wait_until

DOCS = Path(__file__).parents[3] / "docs" / "observability"
WITHOUT_DATA = {
    "Cache hits",  # the example attaches no requests
    "Rejected streams",
    "Failures of the store",
    "Tokens",  # and has no sources
    "Cost",
    "Saving answers",
    "Length of stalls",
}
"""The panels for which the example has no data."""
METRIC = re.compile(r"\bsse_[a-z_]+")


def panels() -> list[tuple[str, list[str]]]:
    dashboard = json.loads((DOCS / "dashboard.json").read_text())
    return [
        (panel["title"], [target["expr"] for target in panel["targets"]])
        for panel in dashboard["panels"]
        if "targets" in panel
    ]


def test_the_image_of_the_docs_shows_each_panel_with_its_queries() -> None:
    image = ET.parse(DOCS / "dashboard.svg")
    space = "{http://www.w3.org/2000/svg}"
    shown = {
        group.findtext(f"{space}title"): group.findtext(f"{space}desc")
        for group in image.iter(f"{space}g")
        if group.find(f"{space}desc") is not None
    }
    assert shown == {title: " ; ".join(queries) for title, queries in panels()}
    curves = [path for path in image.iter(f"{space}path") if "curve" in path.get("class", "")]
    assert len(curves) > len(shown)


def filled_in(query: str) -> str:
    """Return a query with the variables as Grafana fills them in."""
    query = query.replace("$__rate_interval", "1m")
    return query.replace("$route", ".*").replace("$family", ".*")


def alert_queries() -> list[str]:
    found = re.findall(r"expr: >-\n +(.*)", (DOCS / "alerts.yml").read_text())
    assert len(found) == (DOCS / "alerts.yml").read_text().count("alert:")
    return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Prometheus]]:
    directory = tmp_path_factory.mktemp("dashboard")
    environ = {"SSE_LINGER_SECONDS": "5", "SSE_ROLLOUT_PERCENT": "50"}
    with RedisServer(directory) as redis:
        environ["SSE_REDIS_URL"] = redis.patient_url
        with (
            serving("uvicorn-httptools", "example_app.app:app", directory, environ) as server,
            scraping(directory, server.port) as prometheus,
        ):
            use(server)
            yield server, prometheus


def use(server: Server) -> None:
    """Be some visitors of the example: they read, leave, and come back."""
    url = f"{server.url}/stream/search?query=event+loop&delay_ms="
    with httpx.Client(timeout=HANG_SECONDS, headers=EVENTSOURCE) as client:
        for number in range(20):  # in both arms of the rollout
            client.get(f"{url}0", headers={"authorization": f"Bearer {number}"})
        for number in range(20):
            headers = {"authorization": f"Bearer {number}"}
            parser = EventParser()
            with client.stream("GET", f"{url}50", headers=headers) as response:
                for data in response.iter_raw():
                    parser.feed(data)
                    if parser.last_event_id.endswith("-2"):
                        break
                    if "x-heartbeat-interval" not in response.headers:
                        break
            if parser.last_event_id:
                headers["last-event-id"] = parser.last_event_id
                client.get(f"{url}50", headers=headers)
                return


def test_each_query_is_about_metrics_that_there_are(example: tuple[Server, Prometheus]) -> None:
    server, _ = example
    page = httpx.get(f"{server.url}/metrics", timeout=HANG_SECONDS).text
    there = set[str]()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE):
        parts = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        there.update(f"{name}{part}" for part in parts)
    queries = [query for _, targets in panels() for query in targets] + alert_queries()
    assert {name for query in queries for name in METRIC.findall(query)} - there == set()


@pytest.mark.parametrize(("title", "queries"), panels())
def test_each_panel_has_data(
    title: str, queries: list[str], example: tuple[Server, Prometheus]
) -> None:
    _, prometheus = example
    for query in map(filled_in, queries):
        if title in WITHOUT_DATA:
            prometheus.query(query)
        else:
            wait_until(partial(has_data, prometheus, query), f"no data: {query}")


def has_data(prometheus: Prometheus, query: str) -> bool:
    return bool(prometheus.query(query))


def test_each_alert_can_be_evaluated(example: tuple[Server, Prometheus]) -> None:
    _, prometheus = example
    for query in alert_queries():
        prometheus.query(query)


@pytest.mark.parametrize(
    "arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")]
)
def test_the_alerts_are_correct(arguments: tuple[str, ...]) -> None:
    subprocess.run([needs.program("promtool"), *arguments], check=True, cwd=DOCS)
