"""`SSEClient` in a real browser, with a real server and connections that are cut."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import pytest

from tests.e2e.browser.client_page import Followed, left_behind
from tests.e2e.browser.conftest import Start, site_of
from tests.e2e.browser.eventsource_page import visit
from tests.e2e.browser.site import APP, COMMON, UVICORN, Site, assert_gapless
from tests.e2e.browser.thread_proxy import STALLED, running_proxy
from tests.support.cut_proxy import How
from tests.support.servers import serving
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

FINISHED = {"reason": "finished", "incomplete": False}


@pytest.fixture
def hasty(servers: Start) -> Iterator[Site]:
    """A server whose clients reconnect at once."""
    yield from site_of(*servers(UVICORN, {"SSE_RETRY_MS": "5"}))


def job(site: Site, **query: object) -> str:
    """Return the address of a job that sends its first word once the page has its start."""
    return site.url("/job", held=1, **query)


def endings(followed: Followed) -> list[dict[str, Any]]:
    return [
        {name: complete[name] for name in ("reason", "incomplete")}
        for complete in followed.record["completes"]
    ]


def assert_finished(followed: Followed, wanted: int) -> None:
    """Check that an answer is whole: each word once, and one end."""
    followed.wait_for_end()
    assert followed.record["errors"] == []
    assert followed.numbers == list(range(wanted))
    assert endings(followed) == [FINISHED]
    assert followed.record["errors"] == []
    assert followed.record["resets"] == []


# Cuts


def test_a_stream_goes_through_every_state(site: Site, page: "Page") -> None:
    visit(page, site.client())
    site.proxy.cut(rb"data: 5\n")
    followed = Followed(page, job(site, pause=0.05), starts=False)
    assert followed.get("state") == "disconnected"
    followed.call("start")
    assert_finished(followed, 20)
    assert followed.states == [
        "connecting",
        "connected",
        "reconnecting",
        "connected",
        "disconnected",
    ]
    record = followed.record
    assert [start["resumed"] for start in record["starts"]] == [False, True]
    assert record["heartbeats"] >= 1
    assert [detail["attempt"] for detail in record["details"]] == [0, 0, 1, 1, 0]
    assert followed.get("traceId") == record["starts"][-1]["trace_id"]
    assert abs(followed.get("lastMessageTime") / 1000 - time.time()) < 60
    assert site.runs() == [""]


def test_each_word_arrives_once_though_the_answer_is_cut_thirty_times(
    hasty: Site, page: "Page"
) -> None:
    visit(page, hasty.client())
    hasty.proxy.cut(*(rb"data: %d\n" % number for number in range(8, 278, 9)))
    # Bytes that arrive together with a cut do not reach the page, and are no progress.
    url = job(hasty, n=285, pause=0.02)
    followed = Followed(page, url, maxReconnectAttempts=20, reconnectDelay=1)
    assert_finished(followed, 285)
    assert hasty.proxy.discard_cuts() == 0
    assert len(followed.record["starts"]) > 5  # a busy page receives several words before a cut
    assert hasty.runs() == [""]


@pytest.mark.parametrize("how", [How.RESET, How.UNNOTICED])
def test_a_stream_resumes_however_its_connection_is_cut(site: Site, page: "Page", how: How) -> None:
    visit(page, site.client())
    site.proxy.cut(rb"data: 5\n", rb"event: sta", rb"data: 12\nid", how=how)
    followed = Followed(page, job(site))
    assert_finished(followed, 20)
    assert site.runs() == [""]


def test_a_silent_connection_is_replaced(site: Site, page: "Page") -> None:
    visit(page, site.client())
    site.proxy.cut(rb"data: 5\n", how=STALLED)
    followed = Followed(page, job(site), silenceThreshold=0.7)
    assert_finished(followed, 20)
    assert "silence" in [detail.get("reason") for detail in followed.record["details"]]
    assert site.runs() == [""]


def test_a_post_is_resumed_by_the_same_post(site: Site, page: "Page") -> None:
    visit(page, site.client())
    site.proxy.cut(rb"data: 5\n", rb"data: 12\n")
    followed = Followed(
        page,
        job(site),
        method="POST",
        body='{"question": "?"}',
        headers={"content-type": "application/json"},
    )
    assert_finished(followed, 20)
    record = site.record()
    assert record["asked"] == [["POST", 200]] * 3
    assert record["runs"] == [""]


def test_events_with_ids_of_the_app_are_resumed_by_them(site: Site, page: "Page") -> None:
    visit(page, site.client())
    site.proxy.cut(rb"data: 4\n", rb"id: 9\nd", rb"data: 15\n\n")
    followed = Followed(page, site.url("/numbered"))
    followed.wait_for_content(20)
    followed.call("stop")
    assert followed.numbers == list(range(1, len(followed.numbers) + 1))
    assert followed.record["resets"] == []
    assert len(site.runs()) == 4


def test_an_answer_of_a_server_without_us_begins_again(site: Site, page: "Page") -> None:
    visit(page, site.client())
    site.proxy.cut(rb"data: 5\n\n")
    followed = Followed(page, site.url("/without/poll", n=8, pause=0.2), reconnectDelay=50)
    followed.wait_for_end()
    assert followed.numbers == list(range(8))
    assert followed.record["resets"] == ["restarted"]
    assert endings(followed) == [FINISHED]
    assert site.runs() == ["", ""]


# Ends


def test_an_endless_feed_continues_after_rotations_which_are_no_failures(
    capped: Site, page: "Page"
) -> None:
    visit(page, capped.client())
    followed = Followed(page, capped.url("/live"), maxReconnectAttempts=0)
    followed.wait("record.starts.length >= 3 && record.contents.length >= 60")
    followed.call("stop")
    assert_gapless(followed.numbers)
    assert followed.record["resets"] == followed.record["errors"] == []
    assert {detail["attempt"] for detail in followed.record["details"]} == {0}


def test_a_stream_that_the_cap_has_ended_is_incomplete(capped: Site, page: "Page") -> None:
    visit(page, capped.client())
    followed = Followed(page, job(capped, n=1000))
    followed.wait_for_end()
    assert endings(followed) == [{"reason": "duration_cap", "incomplete": True}]
    assert page.evaluate("clients[0].client.error.code") == "duration_cap"
    assert capped.record()["asked"] == [["GET", 200]]


def test_an_error_of_the_app_is_reported_and_not_retried(site: Site, page: "Page") -> None:
    visit(page, site.client())
    followed = Followed(page, job(site, n=6, boom=1))
    followed.wait_for_end()
    (error,) = followed.record["errors"]
    assert error["code"] == "internal_error"
    assert error["traceId"] == followed.get("traceId")
    assert followed.numbers == list(range(6))
    assert len(site.runs()) == 1


def test_a_complete_event_of_the_app_is_an_end(site: Site, page: "Page") -> None:
    visit(page, site.client())
    site.proxy.cut(rb"event: complete\n(.+\n)+\n")
    followed = Followed(page, site.url("/job", completes=1))
    followed.wait_for_end()
    assert followed.record["contents"][-1] == ["complete", {}]
    assert endings(followed) == [FINISHED]
    assert len(site.runs()) == 1


def test_a_refused_request_is_reported_with_its_status(site: Site, page: "Page") -> None:
    visit(page, site.client())
    followed = Followed(page, site.url("/nothing"))
    followed.wait_for_end()
    assert [(error["code"], error["status"]) for error in followed.record["errors"]] == [
        ("http", 404)
    ]


def test_a_page_is_no_stream(site: Site, page: "Page") -> None:
    visit(page, site.client())
    followed = Followed(page, site.url("/page"))
    followed.wait_for_end()
    assert [(error["code"], error["status"]) for error in followed.record["errors"]] == [
        ("http", 200)
    ]


def test_the_client_gives_up_after_three_attempts(page: "Page", site: Site) -> None:
    visit(page, site.client())
    with running_proxy(0) as proxy:  # closes each connection
        url = f"http://127.0.0.1:{proxy.port}/job"
        followed = Followed(page, url, reconnectDelay=20)
        followed.wait_for_end()
    assert followed.states == ["connecting", *["reconnecting"] * 3, "disconnected"]
    assert [error["code"] for error in followed.record["errors"]] == ["gave_up"]


def test_an_answer_begins_again_after_a_restart_of_the_server(
    site: Site, page: "Page", tmp_path: Path
) -> None:
    with running_proxy(0) as proxy:
        with serving(UVICORN, APP, tmp_path, COMMON) as server:
            proxy.server_port = server.port
            first = Site(server, proxy, site.key)
            visit(page, first.client())
            followed = Followed(page, job(first, n=50), maxReconnectAttempts=20)
            followed.wait_for_content(4)
            server.process.kill()
            server.process.wait()
        followed.wait("client.state === 'reconnecting'")
        proxy.server_port = site.server.port
        followed.wait_for_end()
    assert followed.record["resets"] == ["gone"]
    assert followed.numbers == list(range(50))
    assert endings(followed) == [FINISHED]


# Reloads


@pytest.mark.parametrize("replay", [True, False])
def test_a_reloaded_page_resumes(site: Site, page: "Page", *, replay: bool) -> None:
    options: dict[str, Any] = {"keep": "answer", "replay": replay}
    url = job(site, n=40)
    visit(page, site.client())
    before = Followed(page, url, **options)
    before.wait_for_content(5)
    had = len(before.numbers)
    page.reload()
    after = Followed(page, url, starts=False, **options)
    assert after.get("lastEventId")
    after.call("start")
    after.wait_for_end()
    first = 0 if replay else after.numbers[0]
    assert after.numbers == list(range(first, 40))
    assert replay or first >= had
    assert after.record["resets"] == []
    assert page.evaluate("sessionStorage.length") == 0, "it is whole"
    assert site.runs() == [""]


def test_a_kept_event_id_is_not_used_for_another_question(site: Site, page: "Page") -> None:
    visit(page, site.client())
    first = Followed(page, job(site), keep="answer")
    first.wait_for_content(3)
    page.reload()
    other = Followed(page, job(site, n=7), starts=False, keep="answer")
    assert other.get("lastEventId") == ""


# Stop


def test_stop_ends_the_app_and_leaves_no_timers_or_listeners(site: Site, page: "Page") -> None:
    visit(page, site.client())
    page.wait_for_function("window.ready")
    before = left_behind(page)
    followed = Followed(page, job(site, n=10_000))
    followed.wait_for_content(5)
    assert left_behind(page) > before
    followed.call("stop")
    assert left_behind(page) == before
    held = len(followed.numbers)
    wait_until(lambda: site.record()["left"] == 1, "the app does not stop")
    page.wait_for_timeout(200)
    assert len(followed.numbers) == held
    assert ["POST", 204] in site.record()["asked"]
    assert followed.states[-1] == "disconnected"
    assert followed.record["completes"] == followed.record["errors"] == []


def test_a_stop_that_reaches_another_worker_does_not_run_the_app(
    site: Site, page: "Page", tmp_path: Path
) -> None:
    visit(page, site.client())
    with serving(UVICORN, APP, tmp_path, COMMON) as other:
        followed = Followed(page, job(site, n=200), method="POST", body="?")
        followed.wait_for_content(5)
        here, elsewhere = f":{site.proxy.port}/", Site(other, site.proxy, site.key)
        page.route(
            "**/job?sse_cancel*",
            lambda route: route.continue_(url=route.request.url.replace(here, f":{other.port}/")),
        )
        with page.expect_response("**/job?sse_cancel*"):
            followed.call("stop")
        asked = [["POST", 204]]
        assert elsewhere.record() == {"runs": [], "left": 0, "ended": [], "asked": asked}


def test_no_timer_or_listener_survives_an_end_of_any_kind(site: Site, page: "Page") -> None:
    visit(page, site.client())
    page.wait_for_function("window.ready")
    before = left_behind(page)
    whole = Followed(page, job(site, n=3))
    refused = Followed(page, site.url("/nothing"))
    waiting = Followed(page, "http://127.0.0.1:1/", reconnectDelay=60_000)
    waiting.wait("client.state === 'reconnecting'")
    waiting.call("stop")
    for followed in (whole, refused, waiting):
        followed.wait_for_end()
    assert left_behind(page) == before


def test_a_stream_that_was_stopped_without_a_cancel_is_resumed(site: Site, page: "Page") -> None:
    visit(page, site.client())
    followed = Followed(page, job(site, n=60, pause=0.05))
    followed.wait_for_content(5)
    followed.call("stop", {"cancel": False})
    page.wait_for_timeout(300)
    held = len(followed.numbers)
    followed.call("start")
    assert_finished(followed, 60)
    assert held < 60
    assert site.runs() == [""]


@pytest.mark.parametrize("place", ["/inside", "/outside"])
def test_a_page_of_another_origin_resumes_and_stops_without_a_preflight(
    site: Site, page: "Page", place: str
) -> None:
    visit(page, site.other_client("friend.localhost"))
    site.proxy.cut(rb"data: 5\n", rb"data: 12\n")
    followed = Followed(page, site.url(f"{place}/job"))
    assert_finished(followed, 20)
    stopped = Followed(page, site.url(f"{place}/job", n=10_000))
    stopped.wait_for_content(3)
    stopped.call("stop")
    wait_until(lambda: site.record()["left"] == 2, "the app does not stop")
    record = site.record()
    methods = [method for method, _ in record["asked"]]
    assert methods == ["GET"] * 4 + ["POST"]
    assert record["asked"][-1] == ["POST", 204]
    assert record["runs"] == ["", ""]


def test_the_client_is_served_as_a_module_to_any_page(site: Site) -> None:
    response = httpx.get(f"{site.server.url}/sse-client.js", headers={"origin": "https://a.test"})
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["content-type"].startswith("text/javascript")
