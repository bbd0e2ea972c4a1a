"""The doctor finds what a real nginx does to the streams of real servers, and names the hop."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sse_middleware.doctor.client import Target
from sse_middleware.doctor.diagnosis import Diagnosis, Plan, diagnose
from sse_middleware.doctor.report import as_json
from tests.support.needs import program
from tests.support.ports import free_port
from tests.support.servers import running_process, serving, wait_until_listening
from tests.support.waiting import HANG_SECONDS

APP = "tests.e2e.doctor.app:app"
RIGHT = 'proxy_http_version 1.1; proxy_set_header Connection "";'
IGNORING = "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;"
GZIP = "gzip on; gzip_types text/event-stream; gzip_min_length 0; gzip_proxied any;"
SITES = {
    "right": ("app", RIGHT),
    "buffering": ("app", IGNORING),
    "gzip": ("app", GZIP + IGNORING),
    "flushed-gzip": ("app", GZIP + RIGHT),
    "impatient": ("app", RIGHT + "proxy_read_timeout 2s;"),
    "outer": ("right", "proxy_http_version 1.0;"),
    "inner-that-passes-the-header": ("app", RIGHT + "proxy_pass_header X-Accel-Buffering;"),
    "outer-with-the-header": ("inner-that-passes-the-header", "proxy_http_version 1.0;"),
}
"""The servers of nginx: the next hop of each, and its directives."""

VISITS: dict[str, tuple[str, str, set[str]]] = {
    "right": ("right", "/marked", set()),
    "buffering": ("buffering", "/marked", {"buffered"}),
    "buffering an unmarked stream": (
        "buffering",
        "/unmarked",
        {"arrived_at_once", "unmarked", "no_ids"},
    ),
    "gzip": ("gzip", "/marked", {"buffered", "compressed"}),
    "flushed gzip": ("flushed-gzip", "/marked", {"compressed"}),
    "short timeout": ("impatient", "/thinking", {"idle_timeout", "unmarked", "no_ids"}),
    "short timeout with heartbeats": ("impatient", "/marked", set()),
    "nested": ("outer", "/marked", {"buffered"}),
    "nested, inner": ("right", "/marked", set()),
    "nested with the header": ("outer-with-the-header", "/marked", set()),
    "outside": ("right", "/outside", {"cacheable", "no_middleware", "no_ids"}),
    "sse-starlette": ("app", "/sse-starlette", {"no_middleware", "no_ids"}),
    "sse-starlette, buffered": (
        "buffering",
        "/sse-starlette",
        {"buffered", "no_middleware", "no_ids"},
    ),
}
"""The server and the path of each visit, and the codes of the findings; all are made at the same
time, because they wait."""

MOST_VISITS = 3
"""A busy machine holds events back for a second too, but not each time."""

ALWAYS = "six_connections"


@pytest.fixture(scope="module")
def diagnoses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Diagnosis]]:
    directory = tmp_path_factory.mktemp("doctor")
    with ExitStack() as stack:
        # h11 answers nginx's HTTP/1.0 without chunks, so that nginx buffers; httptools does not.
        environ = {"SSE_HEARTBEAT_INTERVAL": "1"}
        app = stack.enter_context(serving("uvicorn-h11", APP, directory, environ))
        ports = {"app": app.port, **{name: free_port() for name in SITES}}
        command = [program("nginx"), "-c", str(configured(directory, ports)), "-p", str(directory)]
        process, log = stack.enter_context(running_process(command, directory / "nginx.log"))
        wait_until_listening(ports["right"], process, log)
        plan = Plan(seconds=HANG_SECONDS)

        def examine(name: str) -> Diagnosis:
            site, path, codes = VISITS[name]
            target = Target(url=f"http://127.0.0.1:{ports[site]}{path}")
            for _ in range(MOST_VISITS):
                diagnosis = diagnose(target, plan, lambda _: None)
                if found(diagnosis) == codes:
                    break
            return diagnosis

        with ThreadPoolExecutor(len(VISITS)) as pool:
            yield dict(zip(VISITS, pool.map(examine, VISITS), strict=True))


def configured(directory: Path, ports: dict[str, int]) -> Path:
    """Write the configuration of nginx, and return its path."""
    temporary = "".join(
        f"{name}_temp_path {directory}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    servers = "".join(
        f"server {{ listen 127.0.0.1:{ports[name]}; {directives}\n"
        f"location / {{ proxy_pass http://127.0.0.1:{ports[next_hop]}; }} }}\n"
        for name, (next_hop, directives) in SITES.items()
    )
    path = directory / "nginx.conf"
    path.write_text(
        f"daemon off;\nmaster_process off;\npid {directory}/pid;\nerror_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{servers}}}\n"
    )
    return path


def found(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings} - {ALWAYS}


def detail(diagnosis: Diagnosis, code: str) -> str:
    return next(finding.detail for finding in diagnosis.findings if finding.code == code)


@pytest.mark.parametrize("name", VISITS)
def test_what_the_doctor_finds(diagnoses: dict[str, Diagnosis], name: str) -> None:
    _, _, codes = VISITS[name]
    assert found(diagnoses[name]) == codes


def test_each_hop_is_named(diagnoses: dict[str, Diagnosis]) -> None:
    assert "nginx" in detail(diagnoses["buffering"], "buffered")
    assert "compresses (gzip)" in detail(diagnoses["gzip"], "buffered")
    assert "another one outside of it" in detail(diagnoses["nested"], "buffered")
    assert "No heartbeat is announced" in detail(diagnoses["short timeout"], "idle_timeout")


def test_the_addresses_of_two_hops_show_which_one_holds_events_back(
    diagnoses: dict[str, Diagnosis],
) -> None:
    outer, inner = diagnoses["nested"], diagnoses["nested, inner"]
    report = json.loads(json.dumps(as_json([outer, inner])))
    (sentence,) = report["hops"]
    assert sentence.index(outer.target.shown) < sentence.index(inner.target.shown)
    assert report["errors"]


def test_the_resume_through_each_proxy_returned_exactly_the_rest(
    diagnoses: dict[str, Diagnosis],
) -> None:
    for name in ("right", "buffering", "nested", "gzip"):
        one: Any = diagnoses[name].resume
        assert [item.event.data for item in one.resumed.app_events] == [str(n) for n in range(1, 8)]
        assert [item.event.data for item in one.replayed.app_events] == [str(n) for n in range(8)]
