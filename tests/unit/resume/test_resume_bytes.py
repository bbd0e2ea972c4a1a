"""Each event is sent again with its first bytes, for any bytes of the app."""

import asyncio
import json

import pytest
from starlette.types import Receive, Scope, Send

from tests.support.asgi import body, stream_of, stream_start
from tests.support.resuming import (
    UNKNOWN,
    bytes_after,
    id_of,
    left,
    memory,
    opened,
    opening,
    read,
    resumable,
    resume,
    returning,
    texts,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "event",
    [
        b"data: a\r\ndata: b\r\n\r\n",
        b"event: x\rdata: a\r\r",
        b"data: a\n\r\n",
        b"data\n\n",
        b"data: \xc3\xa4\xf0\x9f\x98\x80\n\n",
        b"data: \xff\xfe\n\n",
        b"retry: 7\ndata: a\nunknown: field\n\n",
        b"data: a\n: a comment inside\n\n",
        b"event: complete\ndata: mine\n\n",
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_any_event_comes_again_as_it_came(event: bytes, size: int) -> None:
    stream = b"data: 1\n\n" + event + b"data: 3\n\n"
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    app = resumable(stream_of(*chunks), heartbeat_interval=None)
    whole = await read(app)
    cursor = id_of(whole, 1)
    again = await resume(app, cursor)
    assert again.events[1:] == whole.events[2:]
    if size > len(stream) or b"\r\n" not in event:  # otherwise a CRLF may have lost its half
        assert again.body == opening(again) + bytes_after(whole, cursor)


async def test_bytes_that_are_no_event_are_sent_again_with_the_next_event() -> None:
    app = resumable(
        stream_of(b": hello\n\n", b"data: 1\n\n: ping\n\nevent: x\n\nretry: 3\n\n", b"data: 2\n\n")
    )
    whole = await read(app)
    again = await resume(app, id_of(whole, 0))
    assert texts(again) == ["1", "2"]
    for exchange in (whole, again):
        assert b"\n\n: ping\n\nevent: x\n\nretry: 3\n\ndata: 2\n" in exchange.body


async def test_an_event_in_an_unterminated_tail_is_dispatched_to_no_client() -> None:
    app = resumable(stream_of(b"data: 1\n\ndata: 2\n\ndata: half"))
    whole = await read(app)
    again = await resume(app, id_of(whole, 1))
    assert again.names == ["start", "message", "complete"]


async def test_a_trace_id_in_the_data_stays_that_of_the_first_request() -> None:
    app = resumable(stream_of(b'data: {"a":1}\n\n', b'data: {"a":2}\n\n'), trace_in_data=True)
    whole = await read(app, (b"x-trace-id", b"first"))
    again = await resume(app, id_of(whole, 1), (b"x-trace-id", b"second"))
    assert json.loads(again.events[1].data) == {"a": 2, "trace_id": "first"}
    assert json.loads(again.events[0].data)["trace_id"] == "second"
    assert again.body == opening(again) + bytes_after(whole, id_of(whole, 1))


async def test_the_names_of_our_events_have_their_prefix_in_a_resumed_response_too() -> None:
    app = resumable(stream_of(b"data: 1\n\n", pause=6), event_prefix="sse.")
    async with left(app, 1) as first:
        again = await resume(app, first.last_event_id)
    assert again.names == ["sse.start", "sse.heartbeat", "sse.complete"]
    assert (await resume(app, UNKNOWN)).names[0] == "sse.reset"


async def test_a_resume_before_an_event_too_long_to_keep_is_notified_of_the_gap() -> None:
    long = b"data: " + b"x" * 5000 + b"\n\n"
    chunks = [b"data: 1\n\n", long[:2000], long[2000:], b"data: 3\n\n", b"data: 4\n\n"]
    app = resumable(stream_of(*chunks, pause=1), max_event_bytes=1024)
    whole = await read(app)
    again = await resume(app, id_of(whole, 1))
    assert again.names == ["reset", "message", "message", "complete"]
    data = json.loads(again.events[0].data)
    assert (data["reason"], data["resumed"]) == ("truncated", True)
    assert texts(again) == ["3", "4"]
    assert again.events[0].id == id_of(whole, 2)
    assert texts(await resume(app, id_of(whole, 3))) == ["4"]
    assert (await resume(app, id_of(whole, 2))).names[0] == "start"


async def test_a_reader_is_notified_if_an_event_on_the_way_is_too_long() -> None:
    long = b"data: " + b"x" * 5000 + b"\n\n"
    chunks = [b"data: 1\n\n", b"data: 2\n\n", long[:2000], long[2000:], b"data: 4\n\n"]
    app = resumable(stream_of(*chunks, pause=0.5), max_event_bytes=1024)
    async with left(app, 1) as first, returning(app, first.last_event_id) as again:
        await again.until_end()
    assert again.names == ["start", "message", "reset", "message", "complete"]
    assert texts(again) == ["2", "4"]
    reset = again.events[2]
    assert json.loads(reset.data)["reason"] == "truncated"
    assert reset.id == id_of(first, 3)


async def test_a_client_that_missed_a_too_long_last_event_is_notified() -> None:
    long = b"data: " + b"x" * 5000 + b"\n\n"
    app = resumable(stream_of(b"data: 1\n\n", long[:2000], long[2000:]), max_event_bytes=1024)
    whole = await read(app)
    again = await resume(app, id_of(whole, 1))
    assert again.names == ["reset", "complete"]
    assert json.loads(again.events[0].data)["reason"] == "truncated"


async def test_a_reader_is_notified_if_the_last_event_is_too_long() -> None:
    long = b"data: " + b"x" * 5000 + b"\n\n"
    chunks = [b"data: 1\n\n", b"data: 2\n\n", long[:2000], long[2000:]]
    app = resumable(stream_of(*chunks, pause=1), max_event_bytes=1024)
    async with left(app, 1) as first, returning(app, first.last_event_id) as again:
        await again.until_end()
    assert again.names == ["start", "message", "reset", "complete"]


async def test_paced_events_are_paced_once() -> None:
    app = resumable(stream_of(b"data: 1\n\ndata: 2\n\ndata: 3\n\ndata: 4\n\n"), chunk_delay_ms=500)
    async with opened(app) as first:
        await first.until_count(1, "message")
        held = first.last_event_id
        for seconds in (1.5, 0):
            began = asyncio.get_running_loop().time()
            assert texts(await resume(app, held)) == ["2", "3", "4"]
            took = asyncio.get_running_loop().time() - began
            assert took == pytest.approx(seconds, abs=0.1)


async def test_a_mebibyte_comes_again_whole() -> None:
    chunks = [b"data: " + b"%d" % number * 1000 + b"\n\n" for number in range(100, 450)]
    app = resumable(stream_of(*chunks), heartbeat_interval=None)
    whole = await read(app)
    cursor = id_of(whole, 3)
    again = await resume(app, cursor)
    assert again.body == opening(again) + bytes_after(whole, cursor)
    assert max(len(m.get("body", b"")) for _, m in again.messages) < 1 << 17


async def test_dropped_events_are_reported_and_the_rest_is_sent() -> None:
    chunks = [b"data: %d\n\n" % number for number in range(1, 101)]
    app = resumable(stream_of(*chunks), store=memory(max_events=10))
    whole = await read(app)
    again = await resume(app, id_of(whole, 3))
    assert again.names[0] == "reset"
    assert json.loads(again.events[0].data)["reason"] == "truncated"
    assert texts(again)[-1] == "100"
    assert len(texts(again)) <= 10
    first = int(texts(again)[0])
    assert again.events[0].id == id_of(whole, first - 1)
    assert texts(again) == [str(number) for number in range(first, 101)]
    assert again.last_event_id == f"{id_of(whole, 100)}.end"


async def test_a_reader_that_the_app_overtakes_is_notified_of_missed_events() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 401):
            await send(body(b"data: %d " % number + b"x" * 1000 + b"\n\n"))
            await asyncio.sleep(0.01)
        await send(body(b"", more=False))

    kept = resumable(app, store=memory(max_events=20))
    async with opened(kept) as first:
        await first.until_count(2, "message")
        async with returning(kept, first.last_event_id) as slow:
            await slow.until_count(1, "message")
            slow.block()
            await first.until_count(300, "message")
            slow.unblock()
            await slow.until_end()
    resets = [event for event in slow.events if event.event == "reset"]
    assert len(resets) == 1
    seen = [int(text.split()[0]) for text in texts(slow)]
    (hole,) = [at for at in range(1, len(seen)) if seen[at] != seen[at - 1] + 1]
    assert resets[0].id == id_of(first, seen[hole] - 1)
    assert seen[0] == 3
    assert seen[-1] == 400
