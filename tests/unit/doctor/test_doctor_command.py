"""The command `doctor`: arguments, report and exit status."""

import json
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sse_middleware.__main__ import command_parser, main
from sse_middleware.doctor.client import Target
from sse_middleware.doctor.diagnosis import Diagnosis, locate
from sse_middleware.doctor.findings import FINDINGS, Finding, markdown
from sse_middleware.doctor.report import as_json, text
from tests.support.socket_server import answering
from tests.support.visits import MARKED, START, complete, frame, visit_of

DOCUMENT = Path(__file__).parents[3] / "docs" / "doctor.md"
WHOLE = START + frame(1, "swordfish") + frame(2) + complete(0.1, total=2)
REST = START + frame(2) + complete(0.1, total=2)


def response(body: bytes) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in MARKED.items())
    return b"HTTP/1.1 200 OK\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (head.encode(), len(body), body)


@contextmanager
def stream() -> Iterator[str]:
    """Serve a stream that can be resumed, by a server that knows the ids by heart."""

    def respond(request: bytes, _number: int) -> bytes:
        lower = request.lower()
        resumes = b"last-event-id: " in lower and b"-0\r\n" not in lower
        return response(REST if resumes else WHOLE)

    with answering(respond) as port:
        yield f"http://127.0.0.1:{port}/stream?token=hunter2"


def test_a_good_stream_is_reported_without_payload_id_or_query(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stream() as url:
        assert main(["doctor", url]) == 0
        shown = capsys.readouterr()
        assert main(["doctor", url, "--json", "--header", "Authorization: Bearer hunter3"]) == 0
        as_object = capsys.readouterr()
    for secret in ("swordfish", "hunter", "abcdefghijklmnopqrstuv"):
        assert secret not in shown.out + shown.err + as_object.out + as_object.err
    for fact in ("status 200", "2 events of the app", "heartbeat 5 s", "1 events of the app after"):
        assert fact in shown.out
    report = json.loads(as_object.out)
    assert report["errors"] is report["warnings"] is False
    (one,) = report["urls"]
    assert (one["status"], one["marked"], one["events"], one["resumed_events"]) == (200, True, 2, 1)
    assert [finding["code"] for finding in one["findings"]] == ["six_connections"]


def test_what_is_wrong_is_the_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert main(["doctor", f"http://127.0.0.1:{port}/"]) == 1
    out = capsys.readouterr().out
    assert "[unreachable]" in out
    assert FINDINGS["unreachable"].remedy.split(".")[0] in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["localhost"],
        ["http://a:b/"],
        ["http://a/", "--header", "Authorization swordfish"],
        ["http://a/", "--data", "@/no/such/file"],
        ["http://a/", "--method", "GET /"],
    ],
)
def test_wrong_arguments_are_named_in_one_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "swordfish" not in error


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_seconds_are_a_number_above_0(seconds: str) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "http://a/", "--seconds", seconds])


def diagnosed(url: str, *codes: str) -> Diagnosis:
    findings = [Finding(code, "detail") for code in codes]
    visit = visit_of((0.0, WHOLE), headers=MARKED)
    return Diagnosis(target=Target(url=url), visit=visit, http2=False, findings=findings)


def test_the_hop_whose_address_shows_a_finding_first_is_named() -> None:
    outer = diagnosed("https://outer/", "buffered", "unmarked")
    middle = diagnosed("http://middle/", "buffered", "unmarked")
    inner = diagnosed("http://inner/", "unmarked")
    (sentence,) = locate([outer, middle, inner])
    assert "`buffered`" in sentence
    assert sentence.index("http://middle/") < sentence.index("http://inner/")
    assert sentence.split()[0] in text([outer, middle, inner])
    assert as_json([outer, middle, inner])["hops"] == [sentence]


def test_the_docs_have_the_table_of_findings() -> None:
    assert markdown() in DOCUMENT.read_text()


def test_the_commands_of_the_docs_are_valid() -> None:
    commands = [
        shlex.split(line.partition(" > ")[0], comments=True)
        for line in DOCUMENT.read_text().splitlines()
        if line.startswith("python -m sse_middleware")
    ]
    assert len(commands) > 3
    for command in commands:
        command_parser().parse_args(command[3:])
