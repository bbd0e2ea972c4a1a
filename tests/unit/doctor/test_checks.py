"""What each kind of visit shows; every finding of the table has an input here."""

import gzip
from collections.abc import Callable
from typing import Any

import pytest

from sse_middleware.doctor.checks import examine, examine_cors
from sse_middleware.doctor.findings import FINDINGS
from sse_middleware.doctor.resume import Resume, examine_resume
from sse_middleware.doctor.visit import Ending, Visit
from tests.support.visits import (
    HEADERS,
    MARKED,
    RESUMED,
    SECRET,
    START,
    complete,
    control,
    frame,
    heartbeat,
    visit_of,
)

ORIGIN = "https://page.example"
GOOD = (
    (0.0, START),
    (0.5, frame(1)),
    (5.0, heartbeat(5.0)),
    (7.0, frame(2)),
    (7.1, frame(3) + complete(7.1)),
)
TOGETHER = b"".join(chunk for _, chunk in GOOD)


def found(visit: Visit) -> set[str]:
    return {finding.code for finding in examine(visit)}


def resumed(*chunks: tuple[float, bytes], replayed: Visit | None = None, **fields: Any) -> set[str]:
    left = visit_of((0.0, START), (0.1, frame(1)), headers=MARKED, ending=Ending.LEFT)
    answer = visit_of(*chunks, headers=MARKED, **fields)
    resume = Resume(left=left, last_id=f"{SECRET}-1", resumed=answer, replayed=replayed)
    return {finding.code for finding in examine_resume(resume)}


def resumed_with_own_ids(*answer: bytes) -> set[str]:
    left = visit_of((0.0, b"id: a\ndata: 1\n\n"), ending=Ending.LEFT)
    resume = Resume(left=left, last_id="a", resumed=visit_of((0.0, b"".join(answer))))
    return {finding.code for finding in examine_resume(resume)}


def cors(visit: Visit, preflight: Visit | None = None, *, credentials: bool = False) -> set[str]:
    checks = examine_cors(visit, preflight, ORIGIN, credentials=credentials)
    return {finding.code for finding in checks}


CASES: dict[str, Callable[[], set[str]]] = {
    "unreachable": lambda: found(Visit(failure="connection refused", ending=Ending.FAILED)),
    "status": lambda: found(visit_of(status=503)),
    "no_event_stream": lambda: found(
        visit_of((0, b"<html>"), headers={"content-type": "text/html"})
    ),
    "buffered": lambda: found(visit_of((7.1, TOGETHER), headers=MARKED)),
    "arrived_at_once": lambda: found(visit_of((4.0, b"data: 1\n\ndata: 2\n\ndata: 3\n\n"))),
    "compressed": lambda: found(
        visit_of(
            (0, gzip.compress(b"data: 1\n\n")), headers={**HEADERS, "content-encoding": "gzip"}
        )
    ),
    "unreadable": lambda: found(
        visit_of((0, b"data: 1\n\n"), headers={**HEADERS, "content-encoding": "compress"})
    ),
    "content_length": lambda: found(
        visit_of((0, b"data: 1\n\n"), headers={**HEADERS, "content-length": "9"})
    ),
    "cached": lambda: found(visit_of((0, b"data: 1\n\n"), headers={**HEADERS, "age": "12"})),
    "cacheable": lambda: found(visit_of((0, b"data: 1\n\n"), without="cache-control")),
    "idle_timeout": lambda: found(
        visit_of((1.0, b"data: 1\n\n"), ended_at=61.0, ending=Ending.CUT)
    ),
    "cut": lambda: found(
        visit_of((0.0, b"data: 1\n\n"), (9.0, b"data: 2\n\n"), ended_at=9.1, ending=Ending.CUT)
    ),
    "failed": lambda: found(visit_of((0.0, START + control("error", error={})), headers=MARKED)),
    "no_events": lambda: found(visit_of((0.0, b"{}"))),
    "unfinished_event": lambda: found(visit_of((0.0, b"data: 1\n\ndata: 2\n"))),
    "silence": lambda: found(visit_of((0.0, b"data: 1\n\n"), (25.0, b"data: 2\n\n"))),
    "server_paused": lambda: found(
        visit_of((0, START), (5, heartbeat(5.0)), (18, heartbeat(18.0)), headers=MARKED)
    ),
    "no_middleware": lambda: found(visit_of((0.0, b"data: 1\n\n"))),
    "unmarked": lambda: found(
        visit_of((0.0, b"data: 1\n\n"), headers=MARKED, without="x-heartbeat-interval")
    ),
    "no_ids": lambda: found(visit_of((0.0, b"data: 1\n\n"))),
    "starts_over": lambda: resumed_with_own_ids(b"id: a\ndata: 1\n\n", b"id: b\ndata: 2\n\n"),
    "resume_failed": lambda: resumed((0.0, b""), status=500),
    "resume_gone": lambda: resumed((0.0, control("reset", reason="gone")), (0.1, frame(1))),
    "resume_unavailable": lambda: resumed((0.0, RESUMED)),
    "lost_events": lambda: resumed((0.0, RESUMED + frame(3) + complete(7.1))),
    "repeated_events": lambda: resumed((0.0, RESUMED + frame(1) + frame(2) + frame(3))),
    "changed_events": lambda: resumed(
        (0.0, RESUMED + frame(2) + frame(3) + complete(7.1)),
        replayed=visit_of((0.0, START + frame(1) + frame(2, "other")), headers=MARKED),
    ),
    "cors": lambda: cors(visit_of((0.0, b"data: 1\n\n"))),
    "cors_preflight": lambda: cors(
        visit_of(headers={**HEADERS, "access-control-allow-origin": ORIGIN}),
        visit_of(status=405),
    ),
    "end_unclear": lambda: found(visit_of((0.0, b"data: 1\n\n"), without="transfer-encoding")),
    "http_1_0": lambda: found(visit_of((0.0, b"data: 1\n\n"), http_version="1.0")),
}
FROM_TLS = {"six_connections"}


@pytest.mark.parametrize("code", CASES)
def test_each_finding_is_found(code: str) -> None:
    assert code in CASES[code]()


def test_every_finding_of_the_table_has_an_input() -> None:
    assert CASES.keys() | FROM_TLS == FINDINGS.keys()


def test_nothing_is_found_in_a_stream_that_arrives_as_it_is_sent() -> None:
    assert found(visit_of(*GOOD, headers=MARKED)) == set()


@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_a_late_beginning_of_everything_is_no_buffering(offset: float) -> None:
    late = [(at + offset, data) for at, data in GOOD]
    assert found(visit_of(*late, headers=MARKED, head_at=offset)) == set()


def test_nothing_is_found_in_a_resume_that_returns_exactly_the_rest() -> None:
    whole = visit_of((0.0, START + frame(1) + frame(2) + frame(3)), headers=MARKED)
    assert (
        resumed((0.0, RESUMED + frame(2)), (0.2, frame(3) + complete(7.1)), replayed=whole) == set()
    )


def test_the_last_events_count_as_lost_if_only_the_end_shows_that_there_were_any() -> None:
    assert resumed((0.0, RESUMED + frame(2) + complete(7.1, total=3))) == {"lost_events"}


def test_events_that_were_received_before_the_cut_count_as_lost_too() -> None:
    left = visit_of((0.0, START + frame(1) + frame(2)), headers=MARKED, ending=Ending.LEFT)
    answer = visit_of((0.0, RESUMED + complete(1.0, total=0)), headers=MARKED)
    resume = Resume(left=left, last_id=f"{SECRET}-1", resumed=answer)
    assert [finding.code for finding in examine_resume(resume)] == ["lost_events"]


def test_an_app_with_its_own_ids_may_continue_after_the_last_one() -> None:
    assert resumed_with_own_ids(b"id: b\ndata: 2\n\n") == set()


def test_an_app_with_its_own_ids_may_not_repeat_the_last_event() -> None:
    left = visit_of((0.0, b"id: a\ndata: 1\n\nid: b\ndata: 2\n\n"), ending=Ending.LEFT)
    answer = visit_of((0.0, b"id: b\ndata: 2\n\nid: c\ndata: 3\n\n"))
    resume = Resume(left=left, last_id="b", resumed=answer)
    assert [finding.code for finding in examine_resume(resume)] == ["repeated_events"]


def test_a_page_may_read_what_its_origin_or_all_may_read_and_with_cookies_its_origin_only() -> None:
    mine = {"access-control-allow-origin": ORIGIN, "access-control-allow-credentials": "true"}
    for_all = {"access-control-allow-origin": "*"}
    assert cors(visit_of(headers=mine), credentials=True) == set()
    assert cors(visit_of(headers=for_all)) == set()
    assert cors(visit_of(headers=for_all), credentials=True) == {"cors"}
    without = {"access-control-allow-origin": ORIGIN}
    assert cors(visit_of(headers=without), credentials=True) == {"cors"}
    allowing = {**mine, "access-control-allow-headers": "Content-Type, Last-Event-ID"}
    assert cors(visit_of(headers=mine), visit_of(status=204, headers=allowing)) == set()
    assert cors(visit_of(headers=mine), visit_of(status=204, headers=mine)) == {"cors_preflight"}


def test_what_is_no_event_stream_has_no_other_finding() -> None:
    for code in ("unreachable", "status", "no_event_stream"):
        assert CASES[code]() == {code}


def test_a_response_without_content_is_no_stream() -> None:
    (finding,) = examine(visit_of(status=204))
    assert finding.code == "status"


def test_details_name_statuses_and_no_query_of_an_address() -> None:
    headers = {"location": "https://login.example/?token=swordfish", "retry-after": "5"}
    (finding,) = examine(visit_of(status=302, headers=headers))
    assert "302" in finding.detail
    assert "https://login.example/" in finding.detail
    assert "Retry-After: 5".lower() in finding.detail.lower()
    assert "swordfish" not in finding.detail


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (MARKED, "the hop is probably none"),
        ({**MARKED, "x-accel-buffering": "", "server": "nginx/1.22"}, "proxy_ignore_headers"),
        ({**MARKED, "via": "1.1 varnish", "x-varnish": "1 2"}, "Varnish"),
        ({**MARKED, "cf-ray": "8"}, "Cloudflare"),
    ],
)
def test_the_headers_show_which_hop_holds_events_back(headers: dict[str, str], named: str) -> None:
    held = [
        one for one in examine(visit_of((7.1, TOGETHER), headers=headers)) if one.code == "buffered"
    ]
    assert named in held[0].detail
