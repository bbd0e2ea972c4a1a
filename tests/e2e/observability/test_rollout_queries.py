"""The queries of docs/deployment.md, by a real Prometheus that scrapes both arms of a rollout."""

from pathlib import Path

import httpx2 as httpx

from tests.docs.snippets import snippets
from tests.support.prometheus import scraping
from tests.support.servers import serving
from tests.support.waiting import HANG_SECONDS, wait_until

APP = "example_app.app:app"
QUERIES = snippets("promql", "deployment.md")


def test_each_query_of_the_rollout_compares_both_arms(tmp_path: Path) -> None:
    assert len(QUERIES) == 5
    environ = {"SSE_ROLLOUT_USERS": "Bearer canary"}
    with (
        serving("uvicorn-httptools", APP, tmp_path, environ) as server,
        scraping(tmp_path, server.port) as prometheus,
    ):
        url = f"{server.url}/stream/search?query=event+loop&delay_ms=0"

        def stream() -> None:
            for user, has_it in (("Bearer canary", True), ("Bearer other", False)):
                headers = {"authorization": user, "accept": "text/event-stream"}
                response = httpx.get(url, headers=headers, timeout=HANG_SECONDS)
                assert response.status_code == 200
                assert ("x-heartbeat-interval" in response.headers) is has_it

        def arms(query: str) -> dict[str, float]:
            series = prometheus.query(query)
            return {one["metric"].get("arm", "on"): float(one["value"][1]) for one in series}

        def compare() -> bool:
            """Return whether each query has a number for both arms; a rate needs two scrapes."""
            stream()
            found = [arms(query) for query in QUERIES]
            sizes = [value for arm in (found[1], found[2], found[4]) for value in arm.values()]
            return all(one.keys() == {"on", "off"} for one in found) and min(sizes) > 0

        wait_until(compare, lambda: f"{[arms(query) for query in QUERIES]}")
        failed, _, _, left, _ = (arms(query) for query in QUERIES)
        assert failed == left == {"on": 0, "off": 0}
