"""Client kinds: a request alone shows whether its client is a native `EventSource`."""

from urllib.parse import quote, urlencode

import pytest

from sse_middleware.config.endpoint_options import CommentStyle
from sse_middleware.http.request import EVENT_ID_PARAMETERS, SSERequest
from sse_middleware.protocol.client_kinds import (
    ClientKind,
    CommentForm,
    comment_form,
    detect_client_kind,
)
from sse_middleware.protocol.event_ids import EventId

CURSOR = str(EventId("-" + "A" * 20 + "_", 17))
ENDED = f"{CURSOR}.end"
EXACT = b"text/event-stream"
LIBRARY = {b"accept": EXACT, b"cache-control": b"no-cache"}
NATIVE = LIBRARY | {b"user-agent": b"Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 Safari/605.1.15"}
CORS = {b"sec-fetch-mode": b"cors", b"sec-fetch-dest": b"empty"}
NAMED = {b"accept": b"text/event-stream;events=named"}


def family(method: str, headers: dict[bytes, bytes], query: bytes) -> ClientKind:
    request = SSERequest(
        {"method": method, "headers": list(headers.items()), "query_string": query}
    )
    has_event_id = request.event_id is not None
    return detect_client_kind(method, request.headers, has_event_id=has_event_id)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        pytest.param("GET", NATIVE, id="a native EventSource"),
        pytest.param(
            "GET",
            NATIVE | {b"accept": b" Text/Event-Stream ", b"cache-control": b"No-Cache"},
            id="any case",
        ),
        pytest.param("GET", NATIVE | CORS, id="with fetch metadata"),
        pytest.param(
            "GET", NATIVE | CORS | {b"sec-fetch-site": b"cross-site"}, id="on another origin"
        ),
        pytest.param("GET", NATIVE | {b"x-mcp-": b"1", b"mcp": b"1"}, id="names like those of MCP"),
        pytest.param("GET", NAMED, id="our client"),
        pytest.param("POST", NAMED, id="our client's POST"),
        pytest.param("GET", {b"accept": b"text/event-stream; events=named"}, id="with a space"),
        pytest.param("GET", {b"accept": b"Text/Event-Stream;Events=Named"}, id="in upper case"),
        pytest.param("GET", {b"last-event-id": CURSOR.encode()}, id="a cursor"),
        pytest.param("POST", {b"last-event-id": ENDED.encode()}, id="the cursor of an end"),
        pytest.param(
            "POST",
            {b"accept": b"*/*", b"last-event-id": CURSOR.encode(), b"mcp-x": b"1"},
            id="a cursor, whatever else",
        ),
    ],
)
def test_a_client_that_reads_named_events_is_an_eventsource(
    method: str, headers: dict[bytes, bytes]
) -> None:
    assert family(method, headers, b"") is ClientKind.EVENTSOURCE


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        pytest.param("GET", {}, id="no headers"),
        pytest.param("GET", {b"accept": EXACT}, id="no cache-control"),
        pytest.param("GET", {b"cache-control": b"no-cache"}, id="no accept"),
        pytest.param("POST", NATIVE, id="POST"),
        pytest.param("PUT", NATIVE, id="PUT"),
        pytest.param("GET", NATIVE | {b"mcp-session-id": b"1"}, id="MCP"),
        pytest.param("GET", NATIVE | {b"mcp-x": b""}, id="MCP, an empty header"),
        pytest.param("GET", LIBRARY, id="no user agent"),
        pytest.param(
            "GET",
            LIBRARY | {b"user-agent": b"python-requests/2.32.5"},
            id="sseclient, requests-sse",
        ),
        pytest.param(
            "GET",
            LIBRARY | {b"user-agent": b"Python/3.13 aiohttp/3.12.15"},
            id="aiohttp-sse-client",
        ),
        pytest.param(
            "GET",
            LIBRARY | {b"user-agent": b"node", b"sec-fetch-mode": b"cors"},
            id="Node's fetch and eventsource",
        ),
        pytest.param("GET", LIBRARY | {b"user-agent": b"undici"}, id="undici"),
        pytest.param("GET", LIBRARY | {b"user-agent": b"x Mozilla/5.0"}, id="another agent"),
        pytest.param("GET", NATIVE | {b"sec-fetch-mode": b"cors"}, id="half the fetch metadata"),
        pytest.param("GET", NATIVE | {b"sec-fetch-site": b"none"}, id="an address in the bar"),
        pytest.param(
            "GET",
            NATIVE | {b"sec-fetch-mode": b"navigate", b"sec-fetch-dest": b"document"},
            id="a page",
        ),
        pytest.param("GET", NATIVE | {b"accept": b"*/*"}, id="curl, httpx"),
        pytest.param("GET", NATIVE | {b"accept": EXACT + b", */*"}, id="one of two types"),
        pytest.param(
            "GET", NATIVE | {b"accept": b"application/json, " + EXACT}, id="the second of two types"
        ),
        pytest.param("GET", NATIVE | {b"accept": EXACT + b", " + EXACT}, id="two headers joined"),
        pytest.param("GET", NATIVE | {b"accept": EXACT + b";q=0.9"}, id="a weight"),
        pytest.param("GET", NATIVE | {b"accept": EXACT + b";"}, id="an empty parameter"),
        pytest.param("GET", NATIVE | {b"accept": EXACT + b"s"}, id="a longer type"),
        pytest.param("GET", NATIVE | {b"cache-control": b"no-store"}, id="no-store"),
        pytest.param("GET", NATIVE | {b"cache-control": b"no-cache, no-store"}, id="no-cache +"),
        pytest.param("GET", NATIVE | {b"cache-control": b"max-age=0"}, id="a reloaded page"),
        pytest.param("GET", {b"accept": EXACT + b";events=all"}, id="another value"),
        pytest.param("GET", {b"accept": EXACT + b";events=named;q=1"}, id="one more parameter"),
        pytest.param("GET", {b"accept": b"text/html;events=named"}, id="another type"),
        pytest.param("GET", {b"last-event-id": b"17"}, id="the id of an app"),
        pytest.param("GET", {b"last-event-id": b""}, id="an empty id"),
        pytest.param("GET", {b"last-event-id": CURSOR.encode() + b"\n"}, id="nearly a cursor"),
        pytest.param(
            "GET",
            {b"last-event-id": CURSOR.encode() + b", " + CURSOR.encode()},
            id="two cursors joined",
        ),
        pytest.param("GET", {b"last-event-id": b"\xff" * 10_000}, id="10 kB of garbage"),
        pytest.param("GET", {b"last-event-id": "\u0661".encode()}, id="a unicode digit"),
    ],
)
def test_any_other_client_is_plain(method: str, headers: dict[bytes, bytes]) -> None:
    assert family(method, headers, b"") is ClientKind.PLAIN


@pytest.mark.parametrize("name", sorted(EVENT_ID_PARAMETERS))
@pytest.mark.parametrize("cursor", [CURSOR, ENDED], ids=["running", "ended"])
def test_a_client_with_an_event_id_in_the_query_is_an_eventsource(name: str, cursor: str) -> None:
    query = urlencode({"query": "a & b", name: cursor, "x": ""})
    assert family("POST", {}, query.encode()) is ClientKind.EVENTSOURCE


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(f"last_event_id={CURSOR}", id="alone"),
        pytest.param(f"last_event_id={quote(CURSOR).replace('-', '%2D')}", id="percent-encoded"),
        pytest.param(
            "last_event_id=" + "".join(f"%{ord(char):02x}" for char in CURSOR), id="every character"
        ),
        pytest.param(f"last_event_id=7&lastEventId={CURSOR}", id="a foreign one in front"),
        pytest.param(f"last_event_id=7&last_event_id={CURSOR}", id="repeated"),
        pytest.param(f"&&=&%zz=%&last_event_id={CURSOR}&%", id="garbage around"),
        pytest.param(f"q=%ff%fe\u00e9&last_event_id={CURSOR}", id="no UTF-8 in front"),
        pytest.param(f"{'x' * 1_000_000}&last_event_id={CURSOR}", id="a megabyte in front"),
        pytest.param("x=1&" * 99 + f"last_event_id={CURSOR}", id="the hundredth field"),
    ],
)
def test_an_event_id_is_found_at_any_position_of_the_query(query: str) -> None:
    assert family("GET", {}, query.encode("latin-1")) is ClientKind.EVENTSOURCE


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"last_event_id", id="no value"),
        pytest.param(b"last_event_id=", id="an empty value"),
        pytest.param(b"last_event_id=17", id="the id of an app"),
        pytest.param(f"query={CURSOR}".encode(), id="another parameter"),
        pytest.param(f"query=last_event_id={CURSOR}".encode(), id="in another's value"),
        pytest.param(f"query=last_event_id%26lastEventId={CURSOR}".encode(), id="encoded &"),
        pytest.param(f"LAST_EVENT_ID={CURSOR}".encode(), id="upper case"),
        pytest.param(f"my_last_event_id={CURSOR}".encode(), id="a longer name"),
        pytest.param(f"last_event_id={CURSOR}%0A".encode(), id="a line feed at the end"),
        pytest.param(f"last_event_id={CURSOR}%00".encode(), id="NUL at the end"),
        pytest.param(f"last_event_id={CURSOR};x=1".encode(), id="a semicolon separates nothing"),
        pytest.param(f"last_event_id=+{CURSOR}".encode(), id="a plus is a space"),
        pytest.param(f"last_event_id={quote(quote('%') + CURSOR)}".encode(), id="encoded twice"),
        pytest.param(b"last_event_id=%ff%fe\xff", id="no UTF-8"),
        pytest.param(b"last_event_id=%", id="half an escape"),
        pytest.param(b"last_event_id=" + b"A" * 1_000_000, id="a megabyte"),
        pytest.param(b"last_event_id=&" * 100_000, id="100 000 fields"),
        pytest.param(
            b"x=1&" * 100 + f"last_event_id={CURSOR}".encode(), id="after a hundred fields"
        ),
    ],
)
def test_a_client_with_a_hostile_query_without_an_event_id_is_plain(query: bytes) -> None:
    assert family("GET", {}, query) is ClientKind.PLAIN


def test_a_bad_event_id_has_no_effect_on_a_native_eventsource() -> None:
    headers = NATIVE | {b"last-event-id": b"17"}
    assert family("GET", headers, b"last_event_id=%00") is ClientKind.EVENTSOURCE


@pytest.mark.parametrize(
    ("style", "form"),
    [
        ("auto", CommentForm.BLOCK_UNTIL_ID),
        ("line", CommentForm.LINE),
        ("block", CommentForm.BLOCK),
    ],
)
def test_a_comment_has_a_blank_line_until_the_stream_has_ids(
    style: CommentStyle, form: CommentForm
) -> None:
    assert comment_form(style) is form


def test_the_client_kinds_have_the_specified_spelling() -> None:
    assert [str(family) for family in ClientKind] == [
        "eventsource",
        "plain",
        "openai",
        "json",
        "unmarked",
        "off",
    ]
