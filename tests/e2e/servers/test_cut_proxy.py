"""The proxy cuts at the given places, and the client conforms to the specifications."""

import asyncio

import pytest

from sse_middleware import EventParser
from tests.support import scripted_app
from tests.support.cut_proxy import Cut, CuttingProxy, How
from tests.support.event_source import Chunked, EventSource, EventStream, events_in
from tests.support.waiting import HANG_SECONDS

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Script:
    """A server that sends one response on each connection, and records the requests."""

    def __init__(self, *responses: bytes) -> None:
        self.asked: list[str] = []
        self._responses = iter(responses)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(next(self._responses))
        await reader.read()
        writer.close()


def run(script: Script, *cuts: Cut, closes: bool = False) -> tuple[EventSource, CuttingProxy]:
    async def play() -> tuple[EventSource, CuttingProxy]:
        listener = await asyncio.start_server(script, "127.0.0.1")
        async with listener:
            proxy = CuttingProxy([listener.sockets[0].getsockname()[1]], cuts)
            async with proxy, asyncio.timeout(HANG_SECONDS):
                client = EventSource(proxy.port, "/path", closes=closes)
                await client.run()
        return client, proxy

    return asyncio.run(play())


@pytest.mark.parametrize("shape", scripted_app.SCRIPTS)
def test_an_independent_parser_dispatches_the_same(shape: str) -> None:
    body = scripted_app.body_of(shape)
    whole = events_in(body)
    stream = EventStream()
    by_byte = [event for byte in body for event in stream.feed(bytes([byte]))]
    other = [(event.event, event.data) for event in EventParser().feed(body)]
    assert whole == by_byte
    assert [(event.type, event.data) for event in whole] == other
    assert len(whole) > 7


@pytest.mark.parametrize("place", range(30))
def test_chunks_come_off_wherever_they_are_cut(place: int) -> None:
    raw = chunk(b"one\r\n") + chunk(b"0123456789") + b"0\r\n\r\n"
    chunked = Chunked()
    assert chunked.feed(raw[:place]) + chunked.feed(raw[place:]) == b"one\r\n0123456789"
    assert chunked.ended


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("how", How)
def test_just_so_many_bytes_come_through(how: How, *, held: bool) -> None:
    events = b"id: 1\ndata: one\n\nid: 2\ndata: two\n\n"
    response = HEAD + chunk(events) + b"0\r\n\r\n"
    place = len(HEAD) + 4 + len(events)
    for cut, seen in ((Cut(place - 1, how, held), 1), (Cut(place, how, held), 2)):
        script = Script(response, NO_CONTENT)
        client, proxy = run(script, cut)
        assert (len(client.events), proxy.passed, proxy.made) == (seen, cut.place, [cut])
        assert f"Last-Event-ID: {seen}\r\n" in script.asked[1]
        assert client.stopped_by == "204"


def test_a_cut_may_follow_the_match_of_a_pattern() -> None:
    response = HEAD + chunk(b"data: one\n\n") + chunk(b"data: two\n\n") + b"0\r\n\r\n"
    client, proxy = run(Script(response, NO_CONTENT), Cut(rb"data: tw"))
    assert [event.data for event in client.events] == ["one"]
    assert proxy.passed == response.index(b"two") + 2


def test_a_cut_after_the_end_is_not_made() -> None:
    response = HEAD + chunk(b"data: one\n\n") + b"0\r\n\r\n"
    client, proxy = run(Script(response, NO_CONTENT), Cut(len(response) + 1))
    assert len(client.events) == 1
    assert proxy.made == []


def test_a_first_block_without_an_id_takes_the_last_one_away() -> None:
    with_id = HEAD + chunk(b"id: 1\ndata: one\n\n") + b"0\r\n\r\n"
    without = HEAD + chunk(b"data: two\n\n") + b"0\r\n\r\n"
    client, _ = run(Script(with_id, without, NO_CONTENT))
    assert client.asked_with == ["", "1", ""]


def test_a_page_that_knows_of_the_end_comes_back_no_more() -> None:
    response = HEAD + chunk(b'event: complete\ndata: {"stream_id":"1"}\n\n') + b"0\r\n\r\n"
    client, _ = run(Script(response), closes=True)
    assert (client.stopped_by, client.events, len(client.controls)) == ("complete", [], 1)
