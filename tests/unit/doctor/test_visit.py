"""Recorded bytes become events and comments with times, in any chunking and encoding."""

import gzip
import zlib

import pytest

from sse_middleware.doctor.delays import arrived_at_once, longest_delay
from sse_middleware.doctor.visit import MAX_BODY_BYTES, Chunk, read_body
from tests.support.visits import HEADERS, MARKED, START, control, frame, visit_of

BYTES = b": hello\n\ndata: 1\nid: a\n\n: ping\r\n\r\ndata: 2\r\n\r\n"


def test_each_event_has_the_time_at_which_it_was_complete() -> None:
    chunks = [Chunk(float(at), BYTES[at : at + 1]) for at in range(len(BYTES))]
    body = read_body(chunks, "")
    assert [item.event.data for item in body.events] == ["1", "2"]
    assert [item.text for item in body.comments] == ["hello", "ping"]
    assert body.events[0].at == BYTES.index(b"\n\n: ping") + 1
    assert body.rest == 0


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_bodies_are_read(encoding: str, compress: object) -> None:
    assert callable(compress)
    data = compress(BYTES)
    body = read_body([Chunk(0.0, data[:9]), Chunk(1.0, data[9:])], encoding)
    assert [item.event.data for item in body.events] == ["1", "2"]
    assert not body.unreadable


@pytest.mark.parametrize("wbits", [zlib.MAX_WBITS, -zlib.MAX_WBITS])
def test_deflate_is_read_with_and_without_its_wrapper(wbits: int) -> None:
    compressor = zlib.compressobj(wbits=wbits)
    data = compressor.compress(BYTES) + compressor.flush()
    body = read_body([Chunk(0.0, data[:9]), Chunk(1.0, data[9:])], "deflate")
    assert [item.event.data for item in body.events] == ["1", "2"]


@pytest.mark.parametrize("encoding", ["", "identity", "none", "None, identity"])
def test_what_is_no_coding_changes_nothing(encoding: str) -> None:
    assert len(read_body([Chunk(0.0, BYTES)], encoding).events) == 2


@pytest.mark.parametrize("encoding", ["gzip, gzip", "X-GZIP,gzip"])
def test_codings_that_were_applied_after_one_another_are_undone(encoding: str) -> None:
    data = gzip.compress(gzip.compress(BYTES))
    assert len(read_body([Chunk(0.0, data)], encoding).events) == 2


@pytest.mark.parametrize(
    ("encoding", "data", "text"),
    [
        ("gzip", b"data: 1\n\n", "The data is not valid: "),
        ("compress", b"x", "The doctor cannot decode LZW."),
        ("gzip, dcb", b"x", "The doctor cannot decode Brotli with a dictionary."),
        ("something", b"x", "The coding is not known."),
    ],
)
def test_a_body_that_cannot_be_decoded_has_a_reason(encoding: str, data: bytes, text: str) -> None:
    assert text in read_body([Chunk(0.0, data)], encoding).unreadable


def test_a_small_body_that_is_large_when_decompressed_is_read_up_to_a_limit() -> None:
    bomb = gzip.compress(bytes(MAX_BODY_BYTES + 1), compresslevel=1)
    body = read_body([Chunk(0.0, bomb[:99]), Chunk(1.0, bomb[99:])], "gzip")
    assert body.size == MAX_BODY_BYTES


def test_control_events_are_known_by_the_stream_id_whatever_their_prefix_is() -> None:
    other = b'event: heartbeat\ndata: {"stream_id": "of the app", "uptime_seconds": 1}\n\n'
    prefixed = control("x-heartbeat", uptime_seconds=2.0)
    visit = visit_of((0.0, START + other + prefixed + frame(1)), headers=MARKED)
    assert [data["uptime_seconds"] for _, data in visit.control_events["heartbeat"]] == [2.0]
    assert [item.event.event for item in visit.app_events] == ["heartbeat", "message"]


@pytest.mark.parametrize("data", ["[" * 100_000, "nan", "1", "null", '{"stream_id": 1'])
def test_data_that_is_no_object_is_of_the_app(data: str) -> None:
    text = f"data: {MARKED['x-stream-id']}{data}\n\ndata: {data}\n\n"
    assert len(visit_of((0.0, text.encode()), headers=MARKED).app_events) == 2


def test_pings_with_a_timestamp_show_what_is_held_back() -> None:
    pings = [f": ping - 2026-11-30 14:00:0{n}.5+00:00\r\n\r\n".encode() for n in range(4)]
    in_time = visit_of(*((float(n), ping) for n, ping in enumerate(pings)))
    assert longest_delay(in_time) is None
    delay = longest_delay(visit_of((3.0, b"".join(pings))))
    assert delay is not None
    assert delay.seconds == pytest.approx(3.0)


def test_pings_without_a_valid_timestamp_show_nothing() -> None:
    pings = b": ping - 9999-99-99 99:99:99\n\n: ping\n\n: 0001-01-01 00:00:00\n\n"
    assert longest_delay(visit_of((3.0, pings))) is None


def test_heartbeat_comments_that_come_together_were_held_back() -> None:
    headers = {**HEADERS, "x-heartbeat-interval": "5"}
    beats = [(5.0, b": heartbeat\n\n"), (10.0, b": heartbeat\n\n")]
    assert longest_delay(visit_of(*beats, headers=headers)) is None
    assert longest_delay(visit_of((10.0, b": heartbeat\n\n" * 2), headers=headers)) is not None


def test_a_pause_within_an_event_shows_blocks_of_a_buffer() -> None:
    delay = longest_delay(visit_of((0.0, b"data: 1\n\nda"), (4.0, b"ta: 2\n\n")))
    assert delay is not None
    assert delay.seconds == 4.0
    assert longest_delay(visit_of((0.0, b"data: 1\n\n"), (4.0, b"data: 2\n\n"))) is None


def test_a_few_events_or_no_wait_say_nothing() -> None:
    assert arrived_at_once(visit_of((4.0, b"data: 1\n\n"))) is None
    assert arrived_at_once(visit_of((0.1, b"data: 1\n\n" * 9))) is None
    assert arrived_at_once(visit_of((4.0, b"data: 1\n\n" * 9))) == 4.0
