"""A page with a native `EventSource` whose connections are cut, or end by themselves.

The page receives each event once and in order, with no code but `new EventSource(...)`.
"""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sse_middleware import EventParser
from tests.e2e.browser.eventsource_page import CLOSED, Follower, Received, visit
from tests.e2e.browser.site import (
    APP,
    COMMON,
    SERVERS,
    UVICORN,
    Site,
    assert_gapless,
    assert_resumed,
    assert_whole,
    reasons,
)
from tests.e2e.browser.thread_proxy import running_proxy
from tests.support.cut_proxy import How
from tests.support.servers import serving

if TYPE_CHECKING:
    from playwright.sync_api import Page


# A job that ends


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_the_events_of_a_job_that_is_cut_arrive_once_and_in_order(site: Site, page: "Page") -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 5", rb"event: st", rb"data: 15\nid: .", rb"event: compl")
    follower = Follower(page, site.url("/job", n=25))
    follower.wait_until_closed()
    assert_whole(follower.events(), 25)
    assert_resumed(follower)
    assert reasons(follower) == ["finished"]
    assert site.runs() == [""]


@pytest.mark.parametrize("how", [How.RESET, How.UNNOTICED])
def test_a_stream_resumes_however_its_connection_is_cut(site: Site, page: "Page", how: How) -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 5", rb"data: 12", how=how)
    follower = Follower(page, site.url("/job"))
    follower.wait_until_closed()
    assert_whole(follower.events(), 20)
    assert reasons(follower) == ["finished"]
    assert site.runs() == [""]


def test_a_page_that_was_offline_receives_the_rest(site: Site, page: "Page") -> None:
    visit(page, site.page())
    follower = Follower(page, site.url("/job", n=50))
    follower.wait_for("message", 5)
    page.context.set_offline(offline=True)
    site.proxy.cut(rb"\ndata: \d")
    page.wait_for_timeout(500)
    assert follower.opened == 1
    page.context.set_offline(offline=False)
    follower.wait_until_closed()
    assert_whole(follower.events(), 50)
    assert site.runs() == [""]


@pytest.mark.parametrize("places", [[], [rb"data: 19\nid: [\w-]+\n\n"], [rb"event: complete\nda"]])
def test_a_page_that_does_not_close_a_finished_job_is_stopped(
    site: Site, page: "Page", places: list[bytes]
) -> None:
    visit(page, site.page())
    site.proxy.cut(*places)
    follower = Follower(page, site.url("/job"), closes_at=())
    follower.wait_until_closed()
    assert_whole(follower.events(), 20)
    assert reasons(follower) == ["finished"]
    page.wait_for_timeout(400)
    assert follower.state == CLOSED
    record = site.record()
    assert record["asked"] == [*[["GET", 200]] * (1 + len(places)), ["GET", 204]]
    assert record["runs"] == [""]


def test_a_page_that_opens_a_stream_with_its_event_id_in_the_query_receives_the_rest(
    site: Site, page: "Page"
) -> None:
    visit(page, site.page())
    first = Follower(page, site.url("/job", n=60))
    first.wait_for("message", 4)
    first.close()
    site.proxy.cut(rb"data: 50")
    second = Follower(page, site.url("/job", n=60, last_event_id=first.cursor))
    second.wait_until_closed()
    assert_whole([*first.events(), *second.events()], 60)
    assert all(event.json["resumed"] for event in second.events("start"))
    assert site.runs() == [""]


def test_a_page_that_does_not_close_at_a_complete_event_of_the_app_is_stopped(
    site: Site, page: "Page"
) -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 7", rb"event: compl", rb"event: complete\n(.+\n)+\n")
    follower = Follower(page, site.url("/job", completes=1), closes_at=())
    follower.wait_until_closed()
    assert follower.numbers() == list(range(20))
    assert [event.data for event in follower.events("complete")] == ["{}"]
    assert follower.events("reset", "error") == []
    record = site.record()
    *streamed, last = record["asked"]
    assert last == ["GET", 204]
    # Chromium drops the bytes that arrive together with a cut, and then reconnects once more.
    assert streamed == [["GET", 200]] * len(streamed)
    assert len(streamed) >= 3
    assert record["runs"] == [""]


POST_AND_LEAVE = """async (url) => {
    const leaving = new AbortController();
    const headers = { accept: "text/event-stream;events=named" };
    const response = await fetch(url, { method: "POST", headers, signal: leaving.signal });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    while (!text.includes("data: 5")) text += (await reader.read()).value;
    leaving.abort();
    return text;
}"""


def test_a_page_resumes_a_stream_that_it_opened_by_post(site: Site, page: "Page") -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 12")
    text: str = page.evaluate(POST_AND_LEAVE, site.url("/job"))
    events = EventParser().feed(text.encode())
    begun = [Received(event.event, event.data, event.id or "") for event in events]
    held = [event.last_event_id for event in begun if event.last_event_id]  # a heartbeat has none
    follower = Follower(page, site.url("/job", last_event_id=held[-1]))
    follower.wait_until_closed()
    assert_whole([*begun, *follower.events()], 20)
    assert reasons(follower) == ["finished"]
    assert site.runs() == [""]


def test_two_pages_follow_one_job(site: Site, page: "Page") -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 9")
    first = Follower(page, site.url("/job", n=30))
    first.wait_for("message", 4)
    beginning = first.events("message")[0]
    second = Follower(page, site.url("/job", last_event_id=beginning.last_event_id))
    for follower in (first, second):
        follower.wait_until_closed()
    assert_whole(first.events(), 30)
    assert_whole([beginning, *second.events()], 30)
    assert site.runs() == [""]


def held_ids(follower: Follower) -> set[str]:
    """Return the event ids that a page has had.

    The app may get one whose stream is not known: it may be that of a service behind the app.
    """
    return {"", *(event.last_event_id for event in follower.events())}


def test_an_app_that_fails_sends_error_and_begins_again(site: Site, page: "Page") -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 3")
    follower = Follower(page, site.url("/job", n=6, boom=1), closes_at=())
    follower.wait_for("message", 12)
    follower.close()
    assert follower.numbers()[:12] == [*range(6), *range(6)]
    names = [event.type for event in follower.events("error", "reset", "complete")]
    assert names[:2] == ["error", "reset"]
    assert "complete" not in names
    assert follower.events("reset")[0].json["reason"] == "gone"
    assert set(site.runs()) <= held_ids(follower)


def test_a_stream_that_a_new_process_does_not_know_is_reset(
    site: Site, page: "Page", tmp_path: Path
) -> None:
    with running_proxy(0) as proxy:
        with serving(UVICORN, APP, tmp_path, COMMON) as server:
            proxy.server_port = server.port
            first = Site(server, proxy, site.key)
            visit(page, first.page())
            follower = Follower(page, first.url("/job", n=100))
            follower.wait_for("message", 4)
            server.process.kill()
            server.process.wait()
        proxy.server_port = site.server.port
        follower.wait_for("reset")
        follower.wait_until_closed()
    events = follower.events()
    at = [event.type for event in events].index("reset")
    assert events[at].json["reason"] == "gone"
    assert not events[at].json["resumed"]
    assert_whole(events[at:], 100)
    assert set(site.runs()) <= held_ids(follower)


# A page that polls by reconnection: its stream is not marked, since a marked one ends for good


POLLS = pytest.mark.parametrize("path", ["/poll", "/without/poll"])


@POLLS
def test_a_page_that_polls_continues_for_ever(site: Site, page: "Page", path: str) -> None:
    visit(page, site.page())
    follower = Follower(page, site.url(path, n=4), closes_at=())
    follower.wait_for("message", 24)
    assert follower.state != CLOSED
    follower.close()
    events = follower.events()
    assert {(event.type, event.last_event_id) for event in events} == {("message", "")}
    assert follower.numbers()[:24] == [*range(4)] * 6
    runs = site.runs()
    assert runs == [""] * len(runs)
    assert len(runs) >= 6


@POLLS
def test_a_page_that_polls_and_is_cut_polls_again(site: Site, page: "Page", path: str) -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 2", rb"data: 3\n\n", rb"data: 0")
    follower = Follower(page, site.url(path, n=4), closes_at=())
    follower.wait_for_openings(6)
    follower.wait_for("message", len(follower.numbers()) + 8)
    follower.close()
    events = follower.events()
    assert {(event.type, event.last_event_id) for event in events} == {("message", "")}
    numbers = follower.numbers()
    assert all(number in {0, before + 1} for before, number in pairwise([-1, *numbers]))
    assert set(site.runs()) == {""}


# Feeds


@pytest.mark.parametrize("site", SERVERS, indirect=True)
def test_a_live_feed_that_is_cut_five_times_loses_nothing(site: Site, page: "Page") -> None:
    visit(page, site.page())
    follower = Follower(page, site.url("/live"))
    for cuts in range(1, 6):
        follower.wait_for("message", 5 * cuts)
        site.proxy.cut(rb"\ndata: \d")
        follower.wait_for_openings(cuts + 1)
    follower.wait_for("message", 40)
    follower.close()
    assert_gapless(follower.numbers())
    assert_resumed(follower)
    assert follower.events("reset", "complete", "error") == []
    assert site.runs() == [""]


def test_without_us_a_live_feed_loses_the_events_of_a_disconnect(site: Site, page: "Page") -> None:
    visit(page, site.page())
    follower = Follower(page, site.url("/without/live"))
    follower.wait_for("message", 5)
    site.proxy.cut(rb"\ndata: \d")
    follower.wait_for_openings(2)
    held = len(follower.numbers())
    follower.wait_for("message", held + 5)
    numbers = follower.numbers()
    assert len(numbers) < numbers[-1] - numbers[0]
    assert site.runs() == ["", ""]


def test_an_endless_feed_continues_after_three_rotations(capped: Site, page: "Page") -> None:
    visit(page, capped.page())
    follower = Follower(page, capped.url("/live"))
    follower.wait_for_openings(3)
    held = len(follower.numbers())
    follower.wait_for("message", held + 5)
    capped.proxy.cut(rb"\ndata: \d")
    follower.wait_for_openings(5)
    held = len(follower.numbers())
    follower.wait_for("message", held + 5)
    follower.close()
    assert_gapless(follower.numbers())
    assert_resumed(follower)
    assert follower.events("reset", "complete", "error") == []
    assert capped.runs() == [""]


def test_a_marked_stream_is_complete_at_its_cap(capped: Site, page: "Page") -> None:
    visit(page, capped.page())
    capped.proxy.cut(rb"data: 7", rb"event: compl")
    follower = Follower(page, capped.url("/job", n=1000))
    follower.wait_until_closed()
    assert reasons(follower) == ["duration_cap"]
    assert_whole(follower.events(), len(follower.numbers()))
    assert capped.record()["left"] == 1


def test_a_page_that_does_not_close_after_the_cap_begins_again(capped: Site, page: "Page") -> None:
    visit(page, capped.page())
    follower = Follower(page, capped.url("/job", n=1000), closes_at=())
    follower.wait_for("reset")
    held = len(follower.numbers())
    follower.wait_for("message", held + 3)
    follower.close()
    assert reasons(follower) == ["duration_cap"]
    assert follower.events("reset")[0].json["reason"] == "gone"
    numbers = follower.numbers()
    again = numbers.index(0, 1)
    assert_gapless(numbers[:again])
    assert_gapless(numbers[again:])
    first, second = capped.runs()
    assert first == ""
    assert second in held_ids(follower)


# Apps with ids of their own


def ids_of(follower: Follower) -> list[str]:
    return [event.last_event_id for event in follower.events("message")]


def test_an_app_that_numbers_its_events_resumes_them_itself(site: Site, page: "Page") -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 4", rb"id: 9\nd", rb"data: 15\n\n")
    follower = Follower(page, site.url("/numbered"))
    follower.wait_for("message", 20)
    follower.close()
    numbers = follower.numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    assert ids_of(follower) == [str(number) for number in numbers]
    last_event_ids = site.runs()
    assert len(last_event_ids) == 4
    assert last_event_ids[0] == ""
    assert all(int(number) in numbers for number in last_event_ids[1:])
    assert follower.events("reset", "complete", "error") == []


def test_an_app_that_numbers_its_events_receives_the_id_of_the_last_dispatched_event(
    site: Site, page: "Page"
) -> None:
    visit(page, site.page())
    first_start = rb"event: start\ndata: .*\n(.+\n)+\n"
    site.proxy.cut(first_start, rb"data: 4", first_start, first_start)
    follower = Follower(page, site.url("/numbered", delay=0.2))
    follower.wait_for("message", 8)
    follower.close()
    numbers = follower.numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    # The browser may drop events that arrive together with the cut after 3.
    first, second, *cursors = site.runs()
    assert (first, second) == ("", "")
    assert cursors == 3 * [cursors[0]]
    assert cursors[0] in {"1", "2", "3"}
    assert follower.events("reset", "complete", "error") == []


def test_an_app_that_numbers_its_events_is_called_again_after_each_cap(
    capped: Site, page: "Page"
) -> None:
    visit(page, capped.page())
    follower = Follower(page, capped.url("/numbered"))
    follower.wait_for_openings(4)
    held = len(follower.numbers())
    follower.wait_for("message", held + 3)
    follower.close()
    numbers = follower.numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    assert ids_of(follower) == [str(number) for number in numbers]
    last_event_ids = capped.runs()
    assert len(last_event_ids) == 4
    assert last_event_ids[0] == ""
    assert all(int(number) in numbers for number in last_event_ids[1:])
    assert follower.events("reset", "complete", "error") == []


@pytest.mark.parametrize("closes_at", [("complete",), ()])
def test_an_app_that_numbers_its_events_and_keeps_none_is_resumed_by_its_ids(
    site: Site, page: "Page", closes_at: tuple[str, ...]
) -> None:
    visit(page, site.page())
    site.proxy.cut(rb"data: 4", rb"event: st", rb"id: 9\nd", rb"data: 15\n\n", rb"event: compl")
    follower = Follower(page, site.url("/keyed"), closes_at=closes_at)
    follower.wait_until_closed()
    numbers = follower.numbers()
    assert numbers == list(range(1, 21))
    assert ids_of(follower) == [str(number) for number in numbers]
    assert_resumed(follower)
    assert reasons(follower) == ["finished"]
    assert site.runs() == [""]
