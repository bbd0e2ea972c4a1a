"""The client of the commands, against servers that behave badly."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from sse_middleware.doctor.client import InvalidURLError, Target, fetch, offers_http2
from sse_middleware.doctor.visit import Ending
from tests.support.waiting import HANG_SECONDS

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EVENT = b"9\r\ndata: 1\n\n\r\n"

Answer = Callable[[socket.socket], None]


@contextmanager
def answering(answer: Answer) -> Iterator[Target]:
    """Accept connections, and call `answer` for each, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.recv(65536)
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield Target(url=f"http://127.0.0.1:{server.getsockname()[1]}/stream?token=swordfish")
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            thread.join(HANG_SECONDS)


def sending(*parts: bytes) -> Answer:
    return lambda connection: connection.sendall(b"".join(parts))


@pytest.mark.parametrize(
    ("answer", "ending", "events"),
    [
        ((CHUNKED, EVENT, b"0\r\n\r\n"), Ending.COMPLETE, 1),
        ((CHUNKED, EVENT), Ending.CUT, 1),
        ((CHUNKED, EVENT, b"zz\r\n"), Ending.CUT, 1),
        ((CHUNKED, EVENT, b"5\r\nda"), Ending.CUT, 1),
        ((HEAD, b"Content-Length: 9\r\n\r\ndata: 1\n\n"), Ending.COMPLETE, 1),
        ((HEAD, b"Content-Length: 99\r\n\r\ndata: 1\n\n"), Ending.CUT, 1),
        ((HEAD, b"\r\ndata: 1\n\n"), Ending.CLOSED, 1),
        ((HEAD, b"Content-Length: 0\r\n\r\n"), Ending.COMPLETE, 0),
        ((b"",), Ending.FAILED, 0),
        ((b"220 smtp.example ESMTP\r\n",), Ending.FAILED, 0),
        ((b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000,), Ending.FAILED, 0),
    ],
)
def test_how_a_response_ends(answer: tuple[bytes, ...], ending: Ending, events: int) -> None:
    with answering(sending(*answer)) as target:
        visit = fetch(target, {}, seconds=HANG_SECONDS)
    assert visit.ending is ending
    assert len(visit.body.events) == events
    assert bool(visit.failure) is (ending is Ending.FAILED)


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200", HEAD, CHUNKED, CHUNKED + EVENT + b"5"])
def test_a_server_that_stops_anywhere_is_left_at_the_deadline(begin: bytes) -> None:
    is_left = threading.Event()

    def stop(connection: socket.socket) -> None:
        connection.sendall(begin)
        is_left.wait(HANG_SECONDS)

    with answering(stop) as target:
        visit = fetch(target, {}, seconds=0.3)
        is_left.set()
    assert visit.ending in (Ending.LEFT, Ending.FAILED)
    assert (visit.failure == "no response start in time") is (visit.status == 0)


def test_a_server_that_sends_byte_by_byte_is_left_at_the_deadline() -> None:
    is_left = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(CHUNKED)
        while not is_left.wait(0.02):
            connection.sendall(b"0")  # of the size of a chunk

    with answering(drip) as target:
        visit = fetch(target, {}, seconds=0.3)
        is_left.set()
    assert visit.ending is Ending.LEFT


def test_a_connection_can_be_left_after_a_chunk() -> None:
    is_closed = threading.Event()

    def flood(connection: socket.socket) -> None:
        connection.sendall(CHUNKED)
        try:
            while True:
                connection.sendall(EVENT)
        except OSError:
            is_closed.set()

    with answering(flood) as target:
        visit = fetch(target, {}, seconds=HANG_SECONDS, until=lambda chunk: b"data" in chunk)
        assert is_closed.wait(HANG_SECONDS)
    assert visit.ending is Ending.LEFT


def test_the_request_has_the_headers_and_the_body_of_the_target() -> None:
    received = []

    def record(connection: socket.socket) -> None:
        connection.sendall(CHUNKED + b"0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        target = Target(
            url=f"http://127.0.0.1:{server.getsockname()[1]}/ä?q=ü%20b",
            method="POST",
            headers={"accept": "x/y"},
            body=b"{}",
        )

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                received.append(connection.recv(65536))
                record(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        fetch(target, {"accept": "text/event-stream", "x-other": "1"}, seconds=HANG_SECONDS)
        thread.join(HANG_SECONDS)
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /%C3%A4?q=%C3%BC%20b HTTP/1.1\r\n")
    assert b"accept: x/y" in head
    assert b"x-other: 1" in head
    assert b"Accept-Encoding: identity" in head
    assert body in (b"{}", b"")  # the body may come after the head


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    visit = fetch(Target(url=f"http://127.0.0.1:{port}/"), {}, seconds=HANG_SECONDS)
    assert visit.failure.startswith("cannot connect: ")


def test_a_server_without_tls_and_headers_that_cannot_be_sent_are_failures() -> None:
    with answering(sending(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as target:
        encrypted = Target(url=target.url.replace("http://", "https://"))
        assert "cannot connect" in fetch(encrypted, {}, seconds=HANG_SECONDS).failure
        assert offers_http2(encrypted) is None
        assert fetch(target, {"a": "b\r\nc: d"}, seconds=HANG_SECONDS).failure
    assert offers_http2(target) is False


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://a/",
        "http://",
        "http://a:b/",
        "http://[::1/",
        "http://a/\n",
        "http://user:swordfish@a/",
        "http://a:99999/",
    ],
)
def test_an_address_that_cannot_be_used_is_rejected_without_its_password(url: str) -> None:
    with pytest.raises(InvalidURLError) as caught:
        Target(url=url)
    assert "swordfish" not in str(caught.value)


def test_the_shown_address_has_no_query() -> None:
    assert Target(url="https://a.example:81/b?token=swordfish").shown == "https://a.example:81/b"
