"""Event ids: ours are parsed as they were written, and any other text is rejected."""

import re

import pytest

from sse_middleware.protocol.event_ids import Ending, EventId, new_secret, parse_event_id, stream_id

SECRET = "AAAAAAAAAAAAAAAAAAAAA_"


def test_a_secret_is_22_url_safe_characters_and_never_the_same() -> None:
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22}", secret) for secret in made)


def test_a_stream_id_is_a_digest_that_does_not_show_the_secret() -> None:
    secret = new_secret()
    assert re.fullmatch(r"[0-9a-f]{32}", stream_id(secret))
    assert stream_id(secret) == stream_id(secret)
    assert stream_id(secret) != stream_id(new_secret())
    assert secret not in stream_id(secret)


@pytest.mark.parametrize(
    ("cursor", "text"),
    [
        pytest.param(EventId(SECRET, 0), f"{SECRET}-0", id="before the first event"),
        pytest.param(EventId(SECRET, 17), f"{SECRET}-17", id="after an event"),
        pytest.param(
            EventId(SECRET, 17, ending=Ending.FINAL), f"{SECRET}-17.end", id="after the end"
        ),
        pytest.param(EventId(SECRET, 3, Ending.CUT), f"{SECRET}-3.cut", id="after a cut"),
        pytest.param(
            EventId(SECRET, 0, ending=Ending.FINAL), f"{SECRET}-0.end", id="an empty stream's end"
        ),
        pytest.param(EventId("-" * 22, 10**15 - 1), f"{'-' * 22}-{'9' * 15}", id="the longest"),
    ],
)
def test_an_event_id_is_parsed_as_it_was_written(cursor: EventId, text: str) -> None:
    assert str(cursor) == text
    assert parse_event_id(text) == cursor


def test_every_new_secret_makes_a_valid_event_id() -> None:
    for _ in range(1000):
        cursor = EventId(new_secret(), 1)
        assert parse_event_id(str(cursor)) == cursor


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("17", id="the id of an app"),
        pytest.param(SECRET, id="no seq"),
        pytest.param(f"{SECRET}-", id="an empty seq"),
        pytest.param(f"{SECRET[:-1]}-1", id="a short secret"),
        pytest.param(f"{SECRET}A-1", id="a long secret"),
        pytest.param(f"{SECRET[:-1]}+-1", id="no url-safe secret"),
        pytest.param(f"{SECRET[:-1]}\u00e9-1", id="a letter of no ASCII in the secret"),
        pytest.param(f"{SECRET}--1", id="a negative seq"),
        pytest.param(f"{SECRET}-+1", id="a signed seq"),
        pytest.param(f"{SECRET}-01", id="a leading zero"),
        pytest.param(f"{SECRET}-00", id="two zeros"),
        pytest.param(f"{SECRET}-1.0", id="a fraction"),
        pytest.param(f"{SECRET}-1_0", id="an underscore"),
        pytest.param(f"{SECRET}-\u0661", id="a unicode digit"),
        pytest.param(f"{SECRET}-{10**15}", id="a seq of 16 digits"),
        pytest.param(f"{SECRET}-{'9' * 10_000}", id="an endless seq"),
        pytest.param(f"{SECRET}-1.END", id="end in upper case"),
        pytest.param(f"{SECRET}-1.end.end", id="end twice"),
        pytest.param(f"{SECRET}-1.", id="half an end"),
        pytest.param(f"{SECRET}-1\n", id="a line feed at the end"),
        pytest.param(f"{SECRET}-1.end\n", id="a line feed after the ending"),
        pytest.param(f" {SECRET}-1", id="a space in front"),
        pytest.param(f"{SECRET}-1 ", id="a space at the end"),
        pytest.param(f"{SECRET}-1\0", id="NUL at the end"),
        pytest.param(f"{SECRET}-1, {SECRET}-1", id="two headers joined"),
        pytest.param("A" * 1_000_000, id="a megabyte"),
        pytest.param("../../etc/passwd-1.end", id="a path of the right length"),
    ],
)
def test_any_other_text_is_no_event_id_of_ours(text: str) -> None:
    assert parse_event_id(text) is None


def test_the_repr_of_an_event_id_hides_its_secret() -> None:
    cursor = EventId(SECRET, 17)
    assert SECRET not in repr(cursor)
    assert SECRET not in f"{[cursor]}"
    assert "17" in repr(cursor)
