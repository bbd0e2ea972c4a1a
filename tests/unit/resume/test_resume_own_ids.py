"""Apps that set their own ids: they resume their streams themselves, unless these are marked."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from sse_middleware import current_stream, streaming
from sse_middleware.errors import StoreError
from sse_middleware.stores.base import LogSnapshot
from sse_middleware.stores.memory import MemoryStore
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_of,
    stream_start,
)
from tests.support.resuming import (
    TTL,
    UNKNOWN,
    Chunked,
    id_of,
    left,
    memory,
    opened,
    read,
    resumable,
    resume,
    returning,
    texts,
)

pytestmark = pytest.mark.anyio


class Numbering:
    """An app that numbers its events from one, or from the number after the one it receives."""

    def __init__(self, count: int = 5, *, pause: float = 1.0) -> None:
        self.handed: list[str | None] = []
        self.ends: list[str] = []
        self._count = count
        self._pause = pause

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        self.handed.append(request.headers.get("last-event-id"))
        await request.body()

        async def events() -> Any:
            held = self.handed[-1] or "0"
            try:
                for number in range(int(held) + 1 if held.isdigit() else 1, self._count + 1):
                    yield b"id: %d\ndata: %d\n\n" % (number, number)
                    await asyncio.sleep(self._pause)
            except BaseException:
                self.ends.append("cancelled")
                raise
            self.ends.append("finished")

        await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)


def keyed(
    key: Callable[[Scope], str] = lambda _scope: "k", **overrides: Any
) -> dict[str, dict[str, Any]]:
    """Return the mark of an app that numbers its events and does not keep them."""
    return {"marks": {"/*": streaming(ids="app", stream_key=key, **overrides)}}


# An app that keeps its own events


async def test_an_app_with_its_own_ids_receives_the_id_of_the_client_and_resumes_itself() -> None:
    numbering = Numbering()
    store = memory()
    app = resumable(numbering, store=store)
    whole = await read(app)
    assert texts(whole) == ["1", "2", "3", "4", "5"]
    assert whole.last_event_id == "5"
    again = await resume(app, "3")
    assert texts(again) == ["4", "5"]
    assert numbering.handed == [None, "3"]
    assert json.loads(again.events[0].data)["resumed"] is False


@pytest.mark.parametrize("held", ["3", "a b", "ä", "1-2", "{x}", "A" * 22 + "-03", "0"])
async def test_a_client_keeps_the_id_of_the_app_until_the_app_sets_another_one(held: str) -> None:
    received: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.append(dict(scope["headers"]).get(b"last-event-id"))
        await send(stream_start())
        await asyncio.sleep(12)
        await send(body(b"id: 9\ndata: x\n\n"))
        await send(body(b"", more=False))

    async with returning(resumable(app), held) as again:
        assert (await again.until("start")).id == held
        await again.until("heartbeat")
        assert again.last_event_id == held
        await again.until_end()
        assert again.last_event_id == "9"
    assert received == [held.encode()]


async def test_none_of_the_events_of_such_an_app_are_kept() -> None:
    store = memory()
    app = resumable(stream_of(b"data: a\n\n", b"id: 7\ndata: b\n\n", b"data: c\n\n"), store=store)
    whole = await read(app)
    assert [event.id for event in whole.events[1:]] == [id_of(whole, 1), "7", None, None]
    assert store.total_bytes < 3000
    await asyncio.sleep(TTL + 1)
    assert (len(store), store.total_bytes) == (0, 0)


async def test_an_event_id_of_ours_from_before_the_first_id_of_the_app_counts_as_none() -> None:
    runs: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        runs.append(dict(scope["headers"]).get(b"last-event-id"))
        await stream_of(b"data: a\n\n", b"id: 7\ndata: b\n\n")(scope, receive, send)

    kept = resumable(app)
    whole = await read(kept)
    for seq in (0, 1):
        for where in ("header", "query"):
            cursor = id_of(whole, seq)
            if where == "header":
                again = await resume(kept, cursor)
            else:
                again = await read(kept, query_string=f"lastEventId={cursor}".encode())
            assert again.names == ["start", "message", "message", "complete"]
            assert str(again.events[0].id).endswith("-0")
            assert again.events[0].id != id_of(whole, 0)
    assert runs == [None] * 5


async def test_an_app_that_starts_to_set_ids_without_a_reader_continues_until_it_expires() -> None:
    ends: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        listening = asyncio.ensure_future(receive())
        await send(stream_start())
        await send(body(b"data: a\n\n"))
        await asyncio.sleep(5)
        await send(body(b"id: 7\ndata: b\n\n"))
        await listening
        ends.append(asyncio.get_running_loop().time())

    kept = resumable(app, stream_max_seconds=None, heartbeat_interval=None)
    async with opened(kept) as first:
        await first.until("message")
        first.disconnect()
        gone = asyncio.get_running_loop().time()
        async with returning(kept, id_of(first, 1)) as reader:
            await reader.until_end()
        assert reader.names == ["start"]
        assert first.task is not None
        await first.task
    assert len(ends) == 1
    assert ends[0] - gone < 5 + 16


# An app that numbers its events, which we keep


async def test_an_app_that_keeps_nothing_is_resumed_by_its_own_ids() -> None:
    numbering = Numbering(6)
    app = resumable(numbering, **keyed(stream_max_seconds=600), heartbeat_interval=None)
    async with left(app, 2) as first:
        assert first.last_event_id == "2"
        async with returning(app, "2") as again:
            await again.until_end()
    assert texts(again) == ["3", "4", "5", "6"]
    assert [event.id for event in again.events[:5]] == ["2", "3", "4", "5", "6"]
    assert json.loads(again.events[0].data)["resumed"] is True
    assert numbering.handed == [None]
    assert numbering.ends == ["finished"]


@pytest.mark.parametrize("where", ["header", "query"])
async def test_an_id_of_the_app_is_accepted_like_ours(where: str) -> None:
    numbering = Numbering(5)
    app = resumable(numbering, **keyed())
    await read(app)
    if where == "header":
        again = await resume(app, "4")
    else:
        again = await read(app, query_string=b"last_event_id=4")
    assert texts(again) == ["5"]
    assert numbering.handed == [None]


async def test_only_the_end_follows_the_last_id_of_the_app() -> None:
    app = resumable(Numbering(2), **keyed())
    whole = await read(app)
    assert whole.events[-1].id == f"{id_of(whole, 2)}.end"
    assert (await resume(app, "2")).names == ["start", "complete"]
    assert (await resume(app, whole.last_event_id)).status == 204


async def test_a_client_that_had_only_the_start_of_such_an_app_resumes_with_our_event_id() -> None:
    numbering = Numbering(4)
    app = resumable(numbering, **keyed())
    whole = await read(app)
    assert texts(await resume(app, id_of(whole, 0))) == ["1", "2", "3", "4"]
    assert numbering.handed == [None]


async def test_an_id_that_is_not_kept_runs_the_app_again_after_a_reset() -> None:
    numbering = Numbering(3)
    app = resumable(numbering, **keyed())
    unknown = await resume(app, "2")
    assert unknown.names[0] == "reset"
    assert json.loads(unknown.events[0].data)["reason"] == "gone"
    assert (await resume(app, "77")).names[0] == "reset"
    assert texts(await resume(app, "2")) == ["3"]


async def test_an_id_of_an_event_that_has_been_dropped_is_not_kept() -> None:
    app = resumable(Numbering(50, pause=0), **keyed(), store=memory(max_events=8))
    await read(app)
    assert texts(await resume(app, "49")) == ["50"]
    assert (await resume(app, "3")).names[0] == "reset"


async def test_streams_of_other_keys_and_paths_are_others() -> None:
    numbering = Numbering(4)
    app = resumable(numbering, **keyed(lambda scope: scope["query_string"].decode()))
    await read(app, path="/a", query_string=b"job=1")
    assert texts(await resume(app, "3", path="/a", query_string=b"job=1")) == ["4"]
    for other in ({"path": "/a", "query_string": b"job=2"}, {"path": "/b"}):
        assert (await resume(app, "3", **other)).names[0] == "reset"


async def test_the_latest_stream_of_a_key_counts() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        run = len(runs)
        runs.append(run)
        await send(stream_start())
        await send(body(b"id: a\ndata: %d\n\nid: b\ndata: %d\n\n" % (run, run)))
        await send(body(b"", more=False))

    runs: list[int] = []
    kept = resumable(app, **keyed())
    await read(kept)
    await read(kept)
    assert texts(await resume(kept, "a")) == ["1"]


async def test_the_later_event_of_two_with_the_same_id_counts() -> None:
    app = resumable(
        stream_of(b"id: a\ndata: 1\n\n", b"id: a\ndata: 2\n\n", b"data: 3\n\n"), **keyed()
    )
    await read(app)
    assert texts(await resume(app, "a")) == ["3"]


async def test_an_id_may_be_any_text() -> None:
    ids = ["ä", "a b", " x", "7:8", "日本"]
    chunks = [f"id: {each}\ndata: {each}\n\n".encode() for each in ids]
    app = resumable(stream_of(*chunks, b"data: last\n\n"), **keyed())
    await read(app)
    for at, each in enumerate(ids):
        again = await resume(app, each)
        assert texts(again) == [*ids[at + 1 :], "last"], each
        assert again.events[0].id == each


async def test_a_stream_without_an_event_delays_no_client() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        await asyncio.sleep(30)
        await send(body(b"id: 1\ndata: x\n\n", more=False))

    kept = resumable(app, **keyed())
    async with opened(kept) as first:
        await first.until("start")
        came = asyncio.get_running_loop().time()
        async with returning(kept, "7") as again:
            await again.until_count(1)
            assert asyncio.get_running_loop().time() - came < 1
    assert again.names[0] == "reset"


async def test_a_post_resumes_by_an_id_of_the_apps_only_with_the_same_body() -> None:
    numbering = Numbering(3)
    app = resumable(numbering, **keyed(family="eventsource"))
    await handle(app, method="POST", body=b"{}", headers=EVENTSOURCE)
    held = [*EVENTSOURCE, (b"last-event-id", b"2")]
    same = Chunked(http_scope(method="POST", headers=held), b"{", b"}")
    await app(same.scope, same.receive, same.send)
    assert texts(same) == ["3"]
    other = await handle(app, method="POST", body=b"[]", headers=held)
    assert other.names[0] == "reset"


async def test_a_failure_to_compute_the_key_prevents_a_resume_but_no_response(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def key(scope: Scope) -> str:
        return str(scope["path_params"]["job"])  # routing has not set it yet

    app = resumable(Numbering(3), **keyed(key))
    again = await resume(app, "2")
    assert again.status == 200
    assert texts(again)[-1] == "3"
    assert any(record.exc_info for record in caplog.records)


async def test_a_failure_to_compute_the_key_at_the_opening_leaves_nothing() -> None:
    def key(scope: Scope) -> str:
        raise KeyError("job")

    store = memory()
    before = asyncio.all_tasks()
    async with opened(resumable(Numbering(3), store=store, **keyed(key))) as first:
        assert first.task is not None
        await asyncio.wait([first.task])
    await asyncio.sleep(TTL + 1)
    assert len(store) == 0
    assert asyncio.all_tasks() == before


async def test_an_unknown_event_id_of_ours_is_unknown_with_a_key_too() -> None:
    app = resumable(Numbering(3), **keyed())
    assert (await resume(app, UNKNOWN)).names[0] == "reset"


async def test_the_key_of_a_route_and_the_name_of_a_stream_do_not_collide() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/named":
            current_stream().name("key:/:k")
        await stream_of(b"id: 1\ndata: x\n\nid: 2\ndata: y\n\n")(scope, receive, send)

    mark = streaming(ids="app", stream_key=lambda _scope: "k")
    kept = resumable(app, marks={"/": mark})
    await read(kept, path="/named")
    assert (await resume(kept, "1", path="/")).names[0] == "reset"


# Clients that are no EventSource

FETCH = [(b"accept", b"text/event-stream"), (b"content-type", b"application/json")]


async def fetch(app: Any, held: str = "", body: bytes = b"{}") -> Exchange:
    """Return the response to the POST of a `fetch` loop, which has no identity."""
    headers = [*FETCH, (b"last-event-id", held.encode())] if held else FETCH
    return await handle(app, method="POST", body=body, headers=headers)


async def test_any_client_resumes_by_the_ids_of_the_app_and_receives_its_bytes() -> None:
    numbering = Numbering(6)
    app = resumable(numbering, **keyed())
    whole = await fetch(app)
    blocks = whole.body.split(b"\n\n")[:-1]
    assert blocks == [b"id: %d\ndata: %d" % (number, number) for number in range(1, 7)]
    for at in range(1, 6):
        again = await fetch(app, f"{at}")
        assert again.status == 200
        assert again.body == b"".join(block + b"\n\n" for block in blocks[at:])
    assert (await fetch(app, "6")).status == 204
    assert numbering.handed == [None]


async def test_any_client_follows_a_stream_that_is_running() -> None:
    numbering = Numbering(6)
    app = resumable(numbering, **keyed())
    first = Exchange(http_scope(method="POST", headers=FETCH), body=b"{}")
    async with running(app, first):
        await first.until_count(2)
        first.disconnect()
        again = await fetch(app, "2")
    assert [event.data for event in again.events] == ["3", "4", "5", "6"]
    assert numbering.handed == [None]
    assert numbering.ends == ["finished"]


@pytest.mark.parametrize(("held", "body"), [("77", b"{}"), ("2", b"[]")])
async def test_any_client_without_a_stream_runs_the_app(held: str, body: bytes) -> None:
    numbering = Numbering(3)
    app = resumable(numbering, **keyed())
    await fetch(app)
    again = await fetch(app, held, body)
    assert again.status == 200
    assert b"event:" not in again.body  # no reset: it would not be known to such a client
    assert numbering.handed == [None, held]


async def test_any_client_receives_an_error_status_while_the_store_is_out_of_reach() -> None:
    class Failing(MemoryStore):
        async def find_named(self, name: str) -> LogSnapshot | None:
            raise StoreError(f"out of reach: {name}")

    app = resumable(Numbering(3), store=Failing(), **keyed())
    assert (await fetch(app, "2")).status == 503
    assert (await resume(app, "2")).status == 200


async def test_a_client_outside_the_rollout_resumes_by_the_app() -> None:
    numbering = Numbering(3)
    app = resumable(numbering, rollout_percent=0, **keyed())
    await fetch(app)
    await fetch(app, "2")
    assert numbering.handed == [None, "2"]


async def test_blocks_without_data_are_no_events_before_an_id_of_the_app() -> None:
    blocks = [b"retry: 9\n\nid: %d\ndata: %d\n\n" % (number, number) for number in range(1, 6)]
    app = resumable(stream_of(*blocks, pause=1), **keyed())
    async with opened(app) as first:
        await first.until_count(4, "message")
        assert texts(await resume(app, "2")) == ["3", "4", "5"]
