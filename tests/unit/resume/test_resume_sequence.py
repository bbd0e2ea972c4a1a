"""`starting_after` means the `sequence_number` of the app's events, if they have one."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_middleware import SSEMiddleware, current_stream, resume_endpoint
from sse_middleware.resume import log_events
from sse_middleware.resume.log_events import number_of
from sse_middleware.stores.base import LogState
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.testing import FakeStream
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_start,
)
from tests.support.resuming import memory, resumable, texts

pytestmark = pytest.mark.anyio

ANN = (b"authorization", b"Bearer ann")


def numbered(number: object, **more: object) -> bytes:
    """Return an event as OpenAI's Responses send it."""
    data = json.dumps({"type": "response.output_text.delta", "sequence_number": number, **more})
    return b"event: response.output_text.delta\ndata: %b\n\n" % data.encode()


def responses(*blocks: bytes, pause: float = 0.0, **options: Any) -> SSEMiddleware:
    live = resume_endpoint("x", finished="replay")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/live":
            await live(scope, receive, send)
            return
        current_stream().name("x")
        await send(stream_start())
        for block in blocks:
            await send(body(block))
            await asyncio.sleep(pause)
        await send(body(b"", more=False))

    return resumable(app, **options)


def posted(app: SSEMiddleware) -> Any:
    return running(app, Exchange(http_scope(method="POST", headers=[ANN])))


async def rest(app: SSEMiddleware, query: str, **scope: Any) -> Exchange:
    """Let the app send all, and read what follows a position."""
    async with posted(app) as exchange:
        await exchange.until_end()
    return await handle(app, headers=[ANN], path="/live", query_string=query.encode(), **scope)


@pytest.mark.parametrize("start", [0, 1, 7])
@pytest.mark.parametrize("after", [0, 1, 2, 4])
async def test_events_with_a_sequence_number_follow_it(start: int, after: int) -> None:
    blocks = [numbered(number) for number in range(start, start + 5)]
    got = await rest(responses(*blocks), f"starting_after={start + after}")
    wanted = b"".join(blocks[after + 1 :])
    assert (got.status, got.body) == (200, wanted)


async def test_after_always_counts_the_events_from_one() -> None:
    blocks = [numbered(number) for number in range(5)]
    assert (await rest(responses(*blocks), "after=2")).body == b"".join(blocks[2:])


async def test_a_number_before_the_first_one_selects_all() -> None:
    blocks = [numbered(number) for number in range(5, 9)]
    for query in ("starting_after=4", "starting_after=0"):
        assert (await rest(responses(*blocks), query)).body == b"".join(blocks)


@pytest.mark.parametrize(
    "first",
    [
        b"data: 1\n\n",
        b'data: {"n": 1}\n\n',
        numbered("0"),
        numbered(0.0),
        numbered(number=True),
        numbered(number=False),
        numbered(None),
        numbered(-1),
        b'data: [{"sequence_number": 0}]\n\n',
        b'data: {"item": {"sequence_number": 0}}\n\n',
        b'data: {"sequence_number": 0\n\n',
        b'data: "sequence_number"\n\n',
        b"data: " + b'{"sequence_number":' * 40_000 + b"\n\n",
    ],
)
async def test_without_a_sequence_number_in_the_first_event_events_are_counted(
    first: bytes,
) -> None:
    blocks = [first, *(numbered(number) for number in range(10, 14))]
    assert (await rest(responses(*blocks), "starting_after=2")).body == b"".join(blocks[2:])


@pytest.mark.parametrize(("after", "left"), [(0, 4), (4, 4), (5, 3), (6, 3), (20, 2), (21, 1)])
async def test_numbers_with_gaps_are_looked_up(after: int, left: int) -> None:
    blocks = [numbered(number) for number in (0, 5, 20, 21, 30)]
    got = await rest(responses(*blocks), f"starting_after={after}")
    assert got.body == b"".join(blocks[len(blocks) - left :])


async def test_comments_and_blocks_without_data_are_no_events() -> None:
    blocks = [numbered(number) for number in range(4)]
    more = [b": hi\n\n", blocks[0], b"retry: 10\n\n", blocks[1], b": ping\n\n", *blocks[2:]]
    got = await rest(responses(*more), "starting_after=1")
    assert got.body == b": ping\n\n" + b"".join(blocks[2:])


async def test_an_eventsource_has_the_same_position() -> None:
    blocks = [numbered(number) for number in range(4)]
    async with posted(responses(*blocks)) as exchange:
        await exchange.until_end()
    app = responses(*blocks)
    await rest(app, "")
    got = await handle(
        app, headers=[*EVENTSOURCE, ANN], path="/live", query_string=b"starting_after=1"
    )
    assert [json.loads(text)["sequence_number"] for text in _of_app(got)] == [2, 3]


def _of_app(exchange: Exchange) -> list[str]:
    assert texts(exchange) == []
    return [event.data for event in exchange.events if event.event.startswith("response.")]


async def test_a_running_stream_is_followed_from_a_sequence_number() -> None:
    blocks = [numbered(number) for number in range(6)]
    app = responses(*blocks, pause=1)
    async with posted(app) as first:
        await asyncio.sleep(2.5)
        got = await handle(app, headers=[ANN], path="/live", query_string=b"starting_after=1")
        await first.until_end()
    assert got.body == b"".join(blocks[2:])


async def test_events_that_are_no_longer_kept_are_missing() -> None:
    blocks = [numbered(number) for number in range(9)]
    app = responses(*blocks, store=memory(max_events=4))
    for after, wanted in ((8, b""), (5, b"".join(blocks[6:])), (4, b"".join(blocks[5:]))):
        assert (await rest(app, f"starting_after={after}")).body == wanted
    for after in (3, 0):
        got = await rest(app, f"starting_after={after}")
        assert (got.status, got.body) == (204, b"")


@pytest.mark.parametrize("query", ["starting_after=2", "starting_after=4", "starting_after=9"])
async def test_a_head_has_the_same_position(query: str) -> None:
    app = responses(*(numbered(number) for number in range(5)))
    get = await rest(app, query)
    head = await rest(app, query, method="HEAD")
    assert (head.status, head.body) == (get.status, b"")


async def test_a_head_of_a_running_stream_does_not_read_it() -> None:
    app = responses(*(numbered(number) for number in range(5)), pause=1)
    async with posted(app) as first:
        await asyncio.sleep(1.5)
        store: Any = app._context.store
        store.follow = None
        query = b"starting_after=1"
        head = await handle(app, method="HEAD", headers=[ANN], path="/live", query_string=query)
        assert (head.status, head.body) == (200, b"")
        del store.follow
        await first.until_end()


# The search


def stored(store: MemoryStore, numbers: Sequence[object], *, ends: bool = True) -> FakeStream:
    stream = FakeStream(store)
    for at, number in enumerate(numbers, 1):
        stream.log.append(at, numbered(number))
    if ends:
        stream.log.end(LogState.FINISHED)
    return stream


async def found_at(store: MemoryStore, stream: FakeStream, sequence: int) -> int | None:
    found = await store.find(stream.id)
    assert found is not None
    return await number_of(store, found, sequence)


async def test_two_events_are_parsed_if_the_numbers_have_no_gaps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[bytes] = []
    sequence_in = log_events._sequence_in

    def counting(block: bytes) -> int | None:
        parsed.append(block)
        return sequence_in(block)

    monkeypatch.setattr(log_events, "_sequence_in", counting)
    store = memory()
    stream = stored(store, range(5000))
    assert await found_at(store, stream, 3210) == 3211
    assert len(parsed) == 2


async def test_a_number_that_is_not_stored_yet_is_after_the_log() -> None:
    store = memory()
    assert await found_at(store, stored(store, range(5)), 7) == 8


async def test_an_empty_log_that_gets_no_event_has_no_numbers() -> None:
    store = memory()
    assert await found_at(store, stored(store, [], ends=False), 3) is None
    assert await found_at(store, stored(store, []), 3) is None


async def test_the_first_event_of_a_log_may_come_a_little_later() -> None:
    store = memory()
    stream = stored(store, [], ends=False)
    found = asyncio.ensure_future(found_at(store, stream, 3))
    await asyncio.sleep(0.1)
    stream.log.append(1, numbered(0))
    assert await found == 4


@given(
    st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=12).map(sorted),
    st.integers(0, 31),
)
def test_it_is_the_last_event_up_to_the_number(numbers: list[int], sequence: int) -> None:
    async def search() -> None:
        store = memory()
        found = await found_at(store, stored(store, numbers), sequence)
        wanted = len([number for number in numbers if number <= sequence])
        is_after = sequence > numbers[-1] and numbers[-1] - numbers[0] == len(numbers) - 1
        assert found == (wanted + sequence - numbers[-1] if is_after else wanted)

    asyncio.run(search())
