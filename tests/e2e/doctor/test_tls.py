"""The doctor and a real TLS server, which offers HTTP/2."""

import subprocess
from collections.abc import Iterator

import pytest

from sse_middleware.doctor.client import Target
from sse_middleware.doctor.diagnosis import Diagnosis, Plan, diagnose
from tests.support.needs import program
from tests.support.servers import serving
from tests.support.waiting import HANG_SECONDS


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = str(directory / "key.pem"), str(directory / "certificate.pem")
    new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", key, "-out", certificate, "-subj", "/CN=localhost"]
    subprocess.run([program("openssl"), *new, *files], check=True, capture_output=True)
    options = ("--certfile", certificate, "--keyfile", key)
    with serving("hypercorn", "tests.e2e.doctor.app:app", directory, None, *options) as server:
        yield f"https://127.0.0.1:{server.port}/marked"


def diagnosed(target: Target) -> Diagnosis:
    return diagnose(target, Plan(seconds=HANG_SECONDS, resumes=False), lambda _: None)


def test_http2_lifts_the_limit_of_six_connections(url: str) -> None:
    diagnosis = diagnosed(Target(url=url, verify=False))
    assert diagnosis.http2
    assert diagnosis.findings == []


def test_a_certificate_that_is_not_accepted_is_the_finding(url: str) -> None:
    (finding,) = diagnosed(Target(url=url)).findings
    assert finding.code == "unreachable"
    assert "certificate" in finding.detail


def test_a_tls_connection_is_left_at_the_deadline(url: str) -> None:
    target = Target(url=url.replace("/marked", "/thinking"), verify=False)
    diagnosis = diagnose(target, Plan(seconds=1.0, resumes=False), lambda _: None)
    assert diagnosis.visit.ending == "left"
    assert [event.data for _, event in diagnosis.visit.app_events] == ["1"]
