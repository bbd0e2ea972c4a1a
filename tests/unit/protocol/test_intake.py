"""The pieces of an app's bytes are the same if they are processed one by one or together."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sse_middleware import EventParser, Options
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.stream_state import End, StreamState
from sse_middleware.protocol.stream_terms import StreamTerms
from sse_middleware.protocol.wire import Splitter
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.testing import EVENTSOURCE_HEADERS, Exchange, http_scope
from tests.support.middleware import marking

CHUNKS = [
    *(b"data: a\n\n", b"data: b\n\ndata: c\n\n", b"data:\n\n", b"data: \xff\r\n\r\n"),
    *(b"data: cu", b"t\n", b"\n", b"data: x\ndata: y\n\n", b"event: e\ndata: z\n\n"),
    *(b": ping\n\n", b": ping\n", b"retry: 5\n\n", b"\n\n", b"", b"\xef\xbb\xbf", b"dat"),
    *(
        b"event: x\ndata: complete\n\n",
        b"event: e\n\n",
        b"event\ndata: n\n\n",
        b"event:\ndata:\n\n",
    ),
    *(b"event: complete\ndata: end\n\n", b"id: 7\ndata: own\n\n", b"data: [DONE]\n\n"),
    b'data: {"object":"chat.completion.chunk","id":"c","model":"m"}\n\n',
    *(b"data: one\n\ndata: two\nevent: e\n\n", b"data: one\n\n\n\n", b"data: one\n\nid: 9\n\n"),
    *(b"data: " + b"x" * 1030 + b"\n\n", b"data: cr\rdata: lf\n\n", b"\r", b"data: tail"),
]


class Recording:
    """Records the events that are kept, in order."""

    def __init__(self) -> None:
        self.recorded: list[object] = []

    def append(self, first: int, *frames: bytes) -> None:
        self.recorded += enumerate(frames, first)

    def skip(self, seq: int) -> None:
        self.recorded.append(seq)

    def use_app_ids(self) -> None:
        self.recorded.append("disowned")


def new_state(client_kind: ClientKind, *, app_ids: bool = False, **settings: Any) -> StreamState:
    options = Options.from_environ({}, max_event_bytes=1024, **settings)
    state = StreamState(
        options,
        StreamTerms.from_options(options, client_kind),
        client_kind=client_kind,
        record=StreamRecord("s", "t", "/route", client_kind),
        secret="x" * 22 if client_kind is ClientKind.EVENTSOURCE else "",
        marked=False,
        comment=CommentForm.BLOCK_UNTIL_ID,
        app_ids=app_ids,
    )
    state.recording = Recording()
    state.open(0.0, 0.0)
    return state


def let_wait(state: StreamState, chunk: bytes, now: float) -> None:
    """Feed bytes as a producer does."""
    if state.pending:
        state.pending.append(chunk)
    else:
        state.enqueue(chunk, now)


def seen(state: StreamState, out: bytes, end: End) -> tuple[object, ...]:
    assert isinstance(state.recording, Recording | None)
    record = state.record
    recorded = None if state.recording is None else state.recording.recorded
    numbers = (record.chunks, record.family, record.heartbeats, record.gaps)
    return out + end.before + end.data, end.clean, end.frame, recorded, numbers


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(list(ClientKind)),
    st.lists(st.tuples(st.sampled_from(CHUNKS), st.sampled_from("wwwwftbp")), max_size=25),
    st.sampled_from([{}, {"trace_in_data": True}, {"app_ids": True}]),
    st.sampled_from(["finish", "fail", "reach_cap"]),
)
def test_bytes_that_wait_give_the_same_pieces_as_bytes_that_do_not(
    client_kind: ClientKind,
    steps: list[tuple[bytes, str]],
    options: dict[str, Any],
    how: str,
) -> None:
    at_once = new_state(client_kind, **options)
    waiting = new_state(client_kind, **options)
    one, other = b"", b""
    for chunk, step in steps:
        one += at_once.feed(chunk, 1.0)
        if step == "f":
            other += waiting.feed(chunk, 1.0)
        elif step == "p":
            other += b"".join(waiting.feed_parts(chunk, 1.0))
        else:
            let_wait(waiting, chunk, 1.0)
        if step == "t":
            other += waiting.take_pending()
        elif step == "b":
            one += at_once.heartbeat(2.0)
            other += waiting.heartbeat(2.0)
    ends = getattr(at_once, how)(3.0), getattr(waiting, how)(3.0)
    assert seen(at_once, one, ends[0]) == seen(waiting, other, ends[1])
    assert waiting.take_pending() == b""


def is_usual(block: bytes) -> bool:
    *names, data = block.split(b"\n")
    return data[:5] == b"data:" and [name[:6] for name in names] in ([], [b"event:"])


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(CHUNKS), min_size=1, max_size=8).map(b"".join))
def test_only_usual_events_are_counted_without_being_parsed(chunk: bytes) -> None:
    count = Splitter(1 << 20).count_usual(chunk)
    *blocks, rest = chunk.split(b"\n\n")
    usual = rest == b"" and b"\r" not in chunk and all(map(is_usual, blocks))
    assert count == (len(blocks) if usual else 0)
    if count:
        assert len(EventParser().feed(chunk)) == count


def test_bytes_that_wait_count_as_of_the_moment_they_came() -> None:
    state = new_state(ClientKind.EVENTSOURCE)
    state.feed(b"data: 1\n\n", 10.0)
    let_wait(state, b"data: 2\n\n", 10.001)
    let_wait(state, b"data: 3\n\n", 10.001)
    state.feed(b"data: 4\n\n", 12.0)
    gaps = state.record.gaps
    assert (gaps[0], sum(gaps)) == (2, 3)
    assert state.record.gap_seconds == 2.0


@pytest.mark.anyio
async def test_events_after_a_blocked_write_are_kept_at_the_end_of_the_tick() -> None:
    store = MemoryStore()
    never = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await asyncio.sleep(1)

        async def write(number: int) -> None:
            body = b"data: %d\n\n" % number
            await send({"type": "http.response.body", "body": body, "more_body": True})

        blocked = asyncio.create_task(write(1))
        await asyncio.sleep(0)
        await write(2)
        await write(3)
        await never.wait()
        await blocked

    exchange = Exchange(http_scope(headers=EVENTSOURCE_HEADERS))

    async def send(message: Any) -> None:
        await exchange.send(message)
        if b"data: 1" in message.get("body", b""):
            await never.wait()

    task = asyncio.create_task(marking(app, store=store)(exchange.scope, exchange.receive, send))
    await asyncio.sleep(1.1)
    found = await store.find(exchange.headers[b"x-stream-id"].decode())
    assert found is not None
    assert found.last == 3
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
