"""The searches of the example on one worker and on three, each of which may get any request."""

import json
import re
from collections.abc import Iterator

import httpx2 as httpx
import pytest

from sse_middleware import Event, EventParser
from tests.support.example_site import ONE_AND_THREE, Site, running_example
from tests.support.raw_http import EVENTSOURCE
from tests.support.waiting import HANG_SECONDS

QUESTION = "What is the global interpreter lock?"
SEARCH = {"query": QUESTION, "kb_ids": ["faq", "glossary"], "user": "ann"}


@pytest.fixture(scope="module", params=ONE_AND_THREE)
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    with running_example(request.param, tmp_path_factory.mktemp("searches")) as running:
        yield running


def events_of(response: httpx.Response) -> list[Event]:
    assert response.headers["content-type"].startswith("text/event-stream")
    return EventParser().feed(response.content)


def test_each_worker_answers_as_events_and_as_json(site: Site) -> None:
    answers = set()
    for address in site.addresses:
        url, accept = f"{address}/search?delay_ms=0", {"accept": "text/event-stream"}
        events = events_of(httpx.post(url, json=SEARCH, headers=accept, timeout=HANG_SECONDS))
        names = [event.event for event in events]
        assert re.fullmatch("(token )+(citation )+done", " ".join(names))
        data = [json.loads(event.data) for event in events]
        text = "".join(one.get("text", "") for one in data)
        assert not re.search(r"\[\d+\]", text)
        body = httpx.post(url, json=SEARCH, timeout=HANG_SECONDS).json()
        assert body["answer"] == text
        assert body["citations"] == [one for one in data if "document_name" in one]
        assert {hit["document_name"].partition(":")[0] for hit in body["results"]} <= {
            "Python FAQ",
            "Python Glossary",
        }
        assert 25 <= body["confidence_score"] == data[-1]["confidence_score"] <= 100
        answers.add(text)
    assert len(answers) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_search_that_is_cut_continues_at_another_worker(site: Site, method: str) -> None:
    if method == "GET":
        path, headers = f"/stream/search?query={QUESTION}", dict(EVENTSOURCE)
        body = None
    else:
        path, headers = "/search", {"accept": "text/event-stream"}
        body = SEARCH
    with httpx.Client(timeout=HANG_SECONDS) as client:

        def read(number: int, most: int, **more: str) -> list[Event]:
            events, parser, url = list[Event](), EventParser(), f"{site.address(number)}{path}"
            sent = {**headers, **more}
            with client.stream(method, url, headers=sent, json=body) as response:
                assert response.status_code == 200
                for chunk in response.iter_bytes():
                    events += parser.feed(chunk)
                    if len(events) >= most:
                        break
            return [event for event in events if event.event not in ("start", "heartbeat")]

        received = read(0, 10)
        for number, most in ((1, 20), (2, 10_000)):
            received += read(number, most, **{"last-event-id": received[-1].id or ""})
        whole = read(0, 10_000)
    assert [event.event for event in received] == [event.event for event in whole]
    assert [event.data for event in received][:-1] == [event.data for event in whole][:-1]
    ids = [event.id for event in received]
    assert len(set(ids)) == len(ids)
