"""The live page: who may see what, what it shows, and what it changes."""

import asyncio
import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sse_middleware import SSEMiddleware
from sse_middleware.admin.live_streams import SHOWN_STREAMS, LiveStreams
from sse_middleware.errors import ConfigurationError
from sse_middleware.observability.stream_record import StreamRecord
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running
from tests.support.draining import draining
from tests.support.middleware import marking
from tests.support.resuming import Counting, opened, returning

pytestmark = pytest.mark.anyio

TOKEN = "swordfish-swordfish"
ADMIN: dict[str, Any] = {"admin_path": "/ops/live", "admin_token": TOKEN}
PERMITTED = (b"authorization", f"Bearer {TOKEN}".encode())
DATA = ["/events", "/frames", "/cancel"]


def app_with(**options: Any) -> SSEMiddleware:
    counting = Counting(1000)
    return marking(counting, registry=CollectorRegistry(), **{**ADMIN, **options})


def request(
    name: str, *, stream: str = "", method: str = "GET", headers: Any = (PERMITTED,)
) -> Exchange:
    query = f"stream={stream}".encode() if stream else b""
    path = f"/ops/live{name}"
    every = [*EVENTSOURCE, *headers]
    return Exchange(http_scope(method=method, path=path, query_string=query, headers=every))


async def answer(app: SSEMiddleware, exchange: Exchange) -> Exchange:
    async with running(app, exchange):
        assert exchange.task is not None
        await exchange.task
    return exchange


async def snapshot(app: SSEMiddleware) -> dict[str, Any]:
    exchange = request("/events")
    async with running(app, exchange):
        await exchange.until("snapshot")
        data: dict[str, Any] = json.loads(
            next(event.data for event in exchange.events if event.event == "snapshot")
        )
    return data


async def test_the_files_contain_no_data_and_forbid_everything_from_elsewhere() -> None:
    app = app_with()
    types = {"": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}
    for name, media_type in {**types, "/sse-client.js": "text/javascript"}.items():
        exchange = await answer(app, request(name, headers=()))
        assert exchange.status == 200
        assert exchange.headers[b"content-type"].startswith(media_type.encode())
        assert b"default-src 'none'" in exchange.headers[b"content-security-policy"]
        assert TOKEN.encode() not in exchange.body
    page = (await answer(app, request("", headers=()))).body
    assert b'src="live/page.js"' in page
    assert b"http" not in page


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer swordfish",
        TOKEN.encode(),
        b"Bearer \xff\xff",
        f"Basic {TOKEN}".encode(),
        f"Bearer {TOKEN}x".encode(),
    ],
)
async def test_data_needs_the_token(name: str, header: bytes | None) -> None:
    headers = () if header is None else ((b"authorization", header),)
    method = "POST" if name == "/cancel" else "GET"
    exchange = await answer(app_with(), request(name, method=method, headers=headers))
    assert exchange.status == 401
    assert exchange.headers[b"www-authenticate"] == b"Bearer"


async def test_the_streams_their_numbers_and_no_secret_are_shown() -> None:
    app = app_with()
    async with opened(app) as exchange:
        await exchange.until_count(3, "message")
        shown = await snapshot(app)
        (secret,) = {event.id.rpartition("-")[0] for event in exchange.events if event.id}
    assert shown["open"] == 2
    own, stream = shown["streams"]
    assert own["route"] == "sse-admin"
    assert stream["stream_id"] == exchange.headers[b"x-stream-id"].decode()
    assert (stream["state"], stream["connections"], stream["control"]) == ("open", 1, "start")
    assert stream["events"] >= 3
    assert secret not in json.dumps(shown)


async def test_a_stream_lingers_is_read_by_others_and_ends() -> None:
    app = app_with()
    async with opened(app) as exchange:
        await exchange.until_count(2, "message")
        exchange.disconnect()
        await asyncio.sleep(1)
        shown = await snapshot(app)
        assert shown["lingering"] == 1
        assert shown["streams"][1]["state"] == "lingering"
        async with returning(app, exchange.last_event_id) as reader:
            await reader.until("message")
            shown = await snapshot(app)
            states = {row["state"] for row in shown["streams"]}
            assert {"read by others", "resumed"} <= states
            assert "resumed, " in shown["activities"][0]["text"]
            stream = exchange.headers[b"x-stream-id"].decode()
            stopped = await answer(app, request("/cancel", stream=stream, method="POST"))
            assert stopped.status == 200
            await reader.until_end()
    shown = await snapshot(app)
    assert "cancelled" in {row["outcome"] for row in shown["ended"]}
    assert shown["lingering"] == 0


async def test_only_a_known_stream_is_cancelled_and_only_by_post() -> None:
    app, unknown = app_with(), "0" * 32
    for stream, method, status in (
        (unknown, "POST", 404),
        ("../x", "POST", 400),
        ("", "POST", 400),
        (unknown, "GET", 405),
        (unknown, "DELETE", 405),
    ):
        exchange = await answer(app, request("/cancel", stream=stream, method=method))
        assert exchange.status == status


async def test_frames_are_shown_only_if_the_operator_has_allowed_payloads() -> None:
    for allowed in (False, True):
        app = app_with(admin_payloads=allowed)
        async with opened(app) as exchange:
            await exchange.until_count(3, "message")
            stream = exchange.headers[b"x-stream-id"].decode()
            frames = request("/frames", stream=stream)
            if not allowed:
                assert (await answer(app, frames)).status == 403
                continue
            async with running(app, frames):
                await frames.until("frames")
                data = json.loads(next(e.data for e in frames.events if e.event == "frames"))
                assert "data: 1\n\n" in data["frames"]
                assert "id:" not in data["frames"]


async def test_frames_of_an_unknown_stream_end_at_once() -> None:
    app = app_with(admin_payloads=True)
    frames = await answer(app, request("/frames", stream="0" * 32))
    assert frames.status == 200
    assert frames.ended


async def test_the_page_does_not_count_against_the_limits() -> None:
    app = app_with(max_streams=1)
    async with opened(app) as exchange:
        await exchange.until("message")
        assert (await snapshot(app))["open"] == 2
        count = len(exchange.events)
        await exchange.until_count(count + 2)
        assert not exchange.ended


async def test_the_page_ends_by_itself_in_a_drain(caplog: pytest.LogCaptureFixture) -> None:
    app, exchange = app_with(), request("/events")
    async with running(app, exchange):
        await exchange.until("snapshot")
        async with draining():
            await exchange.until_end()
    assert "cut" not in caplog.text


async def test_without_the_setting_the_path_is_the_apps() -> None:
    app = marking(Counting(1), registry=CollectorRegistry())
    exchange = await handle(app, path="/ops/live")
    assert exchange.status == 200
    assert b"x-stream-id" in exchange.headers


async def test_the_path_is_below_the_root_path() -> None:
    exchange = Exchange(http_scope(path="/v1/ops/live", root_path="/v1"))
    assert (await answer(app_with(), exchange)).status == 200


async def test_a_page_without_a_token_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSE_ADMIN_PATH", "/live")
    app = SSEMiddleware(Counting(1), registry=CollectorRegistry())
    with pytest.raises(ConfigurationError, match="SSE_ADMIN_TOKEN"):
        await handle(app)


def test_the_newest_of_many_streams_are_shown_and_all_are_counted() -> None:
    live = LiveStreams(lambda: 1.0, lambda: 2.0)
    for number in range(SHOWN_STREAMS + 5):
        live.opened(StreamRecord(f"{number:032x}", "", "/a", "plain"))
    shown = live.snapshot()
    assert shown["open"] == SHOWN_STREAMS + 5
    assert len(shown["streams"]) == SHOWN_STREAMS
    assert shown["streams"][0]["stream_id"] == f"{SHOWN_STREAMS + 4:032x}"


def test_activities_and_ends_are_bounded() -> None:
    live = LiveStreams(lambda: 1.0, lambda: 2.0)
    for number in range(500):
        record = StreamRecord(f"{number:032x}", "", "/a", "eventsource")
        live.opened(record)
        record.outcome = "error"
        live.ended(record)
        live.stalled(record, 1.0)
        live.rejected("/a", "client")
        live.on_end_failed("/a")
        live.store_failed("read")
    shown = live.snapshot()
    assert (len(shown["ended"]), len(shown["activities"]), shown["open"]) == (50, 100, 0)
    assert shown["ended"][0]["control"] == "error"


def test_only_faults_of_the_store_are_activities() -> None:
    live = LiveStreams(lambda: 1.0, lambda: 2.0)
    live.health_changed("listener", "store", "up", 1)
    live.health_changed("circuit", "read", "open", -1)
    live.health_changed("connection", "store", "open", 1)
    live.health_changed("circuit", "read", "open", 1)
    assert [one["text"] for one in live.snapshot()["activities"]] == ["circuit of read: open"]
