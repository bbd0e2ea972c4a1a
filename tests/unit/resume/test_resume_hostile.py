"""A client that may not read a stream cannot distinguish it from one that never existed."""

import asyncio
import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sse_middleware import SSEMiddleware, StoreError, current_stream, resume_endpoint, streaming
from sse_middleware.stores.base import LogSnapshot
from sse_middleware.stores.memory import MemoryStore
from tests.support.asgi import (
    EVENTSOURCE,
    Exchange,
    body,
    handle,
    http_scope,
    running,
    stream_start,
)
from tests.support.clock import VirtualClockLoop
from tests.support.resuming import (
    UNKNOWN,
    Counting,
    id_of,
    memory,
    opened,
    read,
    resumable,
    resume,
    returning,
)
from tests.support.samples import sampled

pytestmark = pytest.mark.anyio

Pair = tuple[bytes, bytes]
Attack = Callable[[str], dict[str, Any]]
"""The keys of a scope with an event id."""

ANN = (b"authorization", b"Bearer ann")
BOB = (b"authorization", b"Bearer bob")
OTHER = "Zm9vYmFyYmF6cXV4MTIzNA"
"""A valid secret that belongs to no stream."""
THIRD = "YW5vdGhlcmFub3RoZXJhbg-1"


async def diary(scope: Scope, receive: Receive, send: Send) -> None:
    """Write private words to Ann, and the same public words to all others."""
    await receive()
    await send(stream_start([(b"x-words", b"all"), (b"set-cookie", b"a=1")]))
    words = b"private" if ANN in scope["headers"] and scope["path"] == "/a" else b"public"
    for number in range(1, 4):
        await send(body(b"data: %b %d\n\n" % (words, number)))
        if words == b"private" and scope["method"] == "GET":
            await asyncio.sleep(10)
    await send(body(b"", more=False))


def shape(exchange: Exchange, asked: str = OTHER) -> list[Any]:
    """Return the visible parts of a response, except random values and those of the request."""
    shown = repr([message for _, message in exchange.messages]).replace(asked, "ASKED")
    shown = re.sub(r"[A-Za-z0-9_-]{22}-(\d+)", r"SECRET-\1", shown)
    shown = re.sub(r"[0-9a-f]{32}", "DIGEST", shown)
    shown = re.sub(r'"duration":[\d.]+', "DURATION", shown)
    return [shown, exchange.names, exchange.receives, exchange.ended]


def header(cursor: str) -> dict[str, Any]:
    return {"headers": [(b"last-event-id", cursor.encode("latin-1"))]}


def query(cursor: str) -> dict[str, Any]:
    return {"query_string": f"last_event_id={cursor}".encode("latin-1")}


def both_places(cursor: str) -> dict[str, Any]:
    return {**header(cursor), **query(cursor)}


def two_headers(cursor: str) -> dict[str, Any]:
    return {"headers": header(cursor)["headers"] * 2}


def after_another(cursor: str) -> dict[str, Any]:
    return {"headers": [*header(THIRD)["headers"], *header(cursor)["headers"]]}


def before_another(cursor: str) -> dict[str, Any]:
    return {"headers": [*header(cursor)["headers"], *header(THIRD)["headers"]]}


def in_a_list(cursor: str) -> dict[str, Any]:
    return header(f"{THIRD}, {cursor}")


def huge_query(cursor: str) -> dict[str, Any]:
    return {"query_string": b"a=b&" * 5_000 + query(cursor)["query_string"]}


def many_cursors(cursor: str) -> dict[str, Any]:
    return {"query_string": b"&".join([query(cursor)["query_string"]] * 90)}


def with_percents(cursor: str) -> dict[str, Any]:
    return query("".join(f"%{ord(character):02X}" for character in cursor))


def by_post(cursor: str) -> dict[str, Any]:
    return {"method": "POST", "body": b"{}", **header(cursor)}


def by_delete(cursor: str) -> dict[str, Any]:
    return {"method": "DELETE", **header(cursor)}


def by_cancel(cursor: str) -> dict[str, Any]:
    query = f"sse_cancel={cursor}".encode("latin-1")
    return {"method": "POST", "query_string": query, "body": cursor.encode("latin-1")}


ATTACKS: list[Attack] = [
    header,
    query,
    both_places,
    two_headers,
    after_another,
    before_another,
    in_a_list,
    huge_query,
    many_cursors,
    with_percents,
    by_post,
    by_delete,
    by_cancel,
]
FORMS = [
    "{}-0",
    "{}-1",
    "{}-2",
    "{}-999999999999999",
    "{}-1.end",
    "{}-1.again",
    "{}-1.cut",
    "{}-1.END",
    "{}-01",
    "{}-1000000000000000",
    "{}-1 ",
    "{}--1",
    "{}-1e0",
    "{}-\xb9",
    "\xff{}-1",
    "{}-1\xff",
    "{}-" + "1" * 5000,
    "{}",
    "{}-",
    "last_event_id={}-1",
]
STRANGERS: list[tuple[str, list[Pair]]] = [
    ("/a", [BOB]),
    ("/a", []),
    ("/a", [(b"cookie", b"authorization=Bearer ann")]),
    ("/b", [ANN]),
    ("/a/", [ANN]),
    ("/A", [ANN]),
]


async def ask(
    app: SSEMiddleware, attack: Attack, cursor: str, path: str, headers: list[Pair]
) -> Exchange:
    asked = attack(cursor)
    return await handle(
        app, path=path, **{**asked, "headers": [*EVENTSOURCE, *headers, *asked.get("headers", [])]}
    )


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("ended", [False, True], ids=["running", "ended"])
async def test_a_stolen_event_id_gives_another_client_the_same_as_an_unknown_one(
    attack: Attack, *, ended: bool
) -> None:
    app = resumable(diary)
    async with opened(app, ANN, path="/a") as victim:
        await victim.until_count(1, "message")
        if ended:
            await victim.until_end()
        secret = id_of(victim, 0)[:22]
        for form in FORMS:
            for path, headers in STRANGERS:
                stolen = await ask(app, attack, form.format(secret), path, headers)
                unknown = await ask(app, attack, form.format(OTHER), path, headers)
                assert shape(stolen, secret) == shape(unknown), (form, path, headers)
                assert b"private" not in stolen.body
        if not ended:
            await victim.until_end()
    assert victim.names.count("message") == 3
    assert json.loads(victim.events[-1].data)["reason"] == "finished"


async def test_values_from_headers_and_logs_give_no_access(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    app = resumable(diary)
    async with opened(app, path="/b") as victim:  # so that the secret alone would open it
        await victim.until_end()
    found = {value.decode("latin-1") for _, value in victim.start["headers"]}
    found |= set(re.findall(r"[A-Za-z0-9_.-]+", caplog.text))
    found |= {json.loads(victim.events[0].data)["stream_id"]}
    assert len(found) > 10
    for word in found:
        for form in ("{}", "{}-1", "{:.22}-1", "{:.22}-0"):
            cursor = form.format(word)
            again = await ask(app, header, cursor, "/b", [])
            start = json.loads(again.events[0].data)
            assert start["resumed"] is False
            assert start["stream_id"] != victim.headers[b"x-stream-id"].decode()


@pytest.mark.parametrize("at", range(22))
async def test_a_secret_with_one_letter_changed_opens_nothing(at: int) -> None:
    app = resumable(diary)
    async with opened(app, ANN, path="/a") as victim:
        await victim.until_count(1, "message")
        secret = id_of(victim, 0)[:22]
        changed = secret[:at] + ("A" if secret[at] != "A" else "B") + secret[at + 1 :]
        unknown = await ask(app, by_post, f"{OTHER}-1", "/a", [ANN])
        forged = await ask(app, by_post, f"{changed}-1", "/a", [ANN])
        assert shape(forged) == shape(unknown)
        assert forged.names[0] == "reset"


@pytest.mark.parametrize("allows", [True, False])
async def test_a_rejected_resume_looks_like_an_unknown_stream(*, allows: bool) -> None:
    app = resumable(
        Counting(2, pause=0),
        authorize_resume=lambda _scope, _info: allows,
        expires_at=lambda _scope: None if allows else 1.0,
        cap_action="complete",
    )
    whole = await read(app)
    refused = await resume(app, id_of(whole, 1))
    unknown = await resume(app, f"{OTHER}-1")
    assert (shape(refused) == shape(unknown)) is not allows


@pytest.mark.parametrize("attack", [header, query, by_post, by_delete, by_cancel])
async def test_a_foreign_client_causes_the_same_checks_with_and_without_a_stream(
    attack: Attack,
) -> None:
    """An app takes time to identify a client, and that time must not show."""
    asked: list[str] = []

    def identify(scope: Scope) -> str:
        asked.append(scope["path"])
        return str(dict(scope["headers"]).get(b"authorization"))

    app = resumable(diary, identify=identify)
    async with opened(app, ANN, path="/a") as stream:
        await stream.until_count(1, "message")
        for path in ("/a", "/b"):
            counts = []
            for cursor in (id_of(stream, 1), f"{OTHER}-1"):
                asked.clear()
                await ask(app, attack, cursor, path, [BOB])
                counts.append(len(asked))
            assert counts[0] == counts[1] >= 1


async def test_a_stream_by_name_looks_to_another_client_like_none() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/live":
            await resume_endpoint("x")(scope, receive, send)
            return
        current_stream().name("x")
        await diary({**scope, "headers": [ANN]}, receive, send)

    def user(scope: Scope) -> str | None:
        return dict(scope["headers"]).get(b"authorization", b"").decode() or None

    kept, empty = resumable(app, identify=user), resumable(app, identify=user)
    async with opened(kept, ANN, path="/a") as victim:
        await victim.until_count(1, "message")
        cursors = [
            None,
            f"{OTHER}-1",
            id_of(victim, 1),
            id_of(victim, 0),
            id_of(victim, 1) + ".cut",
        ]
        for cursor in cursors:
            for headers in ([BOB], []):
                held = [] if cursor is None else [(b"last-event-id", cursor.encode())]
                stolen = await read(kept, *headers, *held, path="/live")
                none = await read(empty, *headers, *held, path="/live")
                assert shape(stolen) == shape(none)
                assert stolen.status == 204


async def test_an_event_id_of_another_route_gives_no_access_by_a_name_of_the_same_owner() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/live":
            await resume_endpoint("x")(scope, receive, send)
        else:
            await Counting(2, pause=1)(scope, receive, send)  # it has no name

    kept = resumable(app, identify=lambda _scope: "ann")
    async with opened(kept, path="/a") as first:
        await first.until_count(1, "message")
        assert (await resume(kept, id_of(first, 1), path="/live")).status == 204


# Arbitrary requests


cursors = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", " ", "\0", "é", OTHER[:1]]),
    st.sampled_from([OTHER, OTHER[:-1], "é" * 22, ""]),
    st.sampled_from(["-0", "-1", "-", "-01", "--1", "-9" * 30, "-²", "-1\n", "-999999999999999"]),
    st.sampled_from(["", ".end", ".again", ".cut", ".END", ".", "\0", "\r\n", " "]),
)
values = st.binary(max_size=80) | cursors.map(str.encode) | st.text(max_size=40).map(str.encode)
names = st.sampled_from(
    [b"last_event_id", b"lastEventId", b"evs_last_event_id", b"sse_cancel", b"a", b""]
)
pieces = st.tuples(names, st.sampled_from([b"=", b"", b"==", b"%3d"]), values).map(b"".join)
queries = st.lists(pieces, max_size=6).map(b"&".join) | st.binary(max_size=200)


@given(
    headers=st.lists(values, max_size=3),
    query_string=queries,
    method=st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD", "get", ""]),
    status=st.sampled_from([200, 404, 405]),
)
@settings(max_examples=sampled(200), deadline=None)
def test_no_id_and_no_query_can_break_a_request(
    headers: list[bytes], query_string: bytes, method: str, status: int
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        ran.append(method)
        if status == 200:
            await send(stream_start())
            await send(body(b"data: 1\n\n", more=False))
        else:
            await PlainTextResponse("no", status)(scope, receive, send)

    async def request() -> Exchange:
        mark = streaming(ids="app", stream_key=lambda scope: scope["path"])
        return await handle(
            resumable(app, marks={"/k": mark}),
            method=method,
            path="/k" if len(headers) == 3 else "/",
            headers=[(b"last-event-id", value) for value in headers],
            query_string=query_string,
        )

    ran: list[str] = []
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        exchange = runner.run(request())
    assert exchange.status in (200, 204, status)
    assert exchange.ended
    assert len(ran) == (exchange.status != 204)


@given(headers=st.lists(values, min_size=1, max_size=2), query_string=queries)
@settings(max_examples=sampled(100), deadline=None)
def test_only_its_own_event_id_opens_a_stream(headers: list[bytes], query_string: bytes) -> None:
    async def request() -> tuple[Exchange, Exchange]:
        app = resumable(Counting(2))
        async with opened(app) as victim:
            await victim.until_count(1, "message")
            asking = Exchange(
                http_scope(
                    headers=[(b"last-event-id", value) for value in headers],
                    query_string=query_string,
                )
            )
            async with running(app, asking):
                await asyncio.sleep(10)
        return victim, asking

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        victim, asking = runner.run(request())
    assert asking.headers.get(b"x-stream-id") != victim.headers[b"x-stream-id"]
    assert b'"resumed":true' not in asking.body


@given(seq=st.integers(min_value=0, max_value=10**15 - 1), ended=st.booleans())
@settings(max_examples=sampled(100), deadline=None)
def test_any_position_in_a_clients_own_stream_is_answered(seq: int, *, ended: bool) -> None:
    async def request() -> Exchange:
        app = resumable(Counting(4))
        async with opened(app) as first:
            await first.until_count(2, "message")
            if ended:
                await first.until_end()
            return await resume(app, id_of(first, seq))

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        again = runner.run(request())
    assert again.status == 200
    assert again.ended
    assert again.names[-1] == "complete"
    if seq > 4 and ended:
        assert again.names[0] == "reset"
    seen = [event.data for event in again.events if event.event == "message"]
    assert seen in ([str(number) for number in range(seq + 1, 5)], ["1", "2", "3", "4"])


# Secrets


async def test_a_secret_is_in_the_stream_and_nowhere_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Shaky(MemoryStore):
        down = False

        async def find(self, stream_id: str) -> LogSnapshot | None:
            if self.down:
                raise StoreError("it is down")
            return await super().find(stream_id)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/fails":
            await Counting(2)(scope, receive, send)
            raise ValueError("what the app says")
        await Counting(40)(scope, receive, send)

    def fails(scope: Scope, info: Any) -> bool:
        raise ValueError("what the operator says")

    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    store = Shaky(clock=asyncio.get_running_loop().time)
    kept = resumable(app, store=store, cap_action="rotate", stream_max_seconds=12)
    refusing = resumable(app, store=store, authorize_resume=fails)
    exchanges: list[Exchange] = []
    async with opened(kept, path="/fails") as failing:
        await failing.until("message")
        exchanges.append(failing)
    async with opened(kept) as first:
        exchanges.append(first)
        await first.until_count(2, "message")
        held = id_of(first, 1)
        async with returning(kept, held) as again:
            exchanges.append(again)
            await again.until_end()
        exchanges += [
            await resume(refusing, held),
            await resume(kept, f"{held}.end"),
            await resume(kept, f"{held}.cut"),
            await resume(kept, f"{held}.again"),
            await resume(kept, held, path="/other"),
            await resume(kept, held, BOB),
            await read(kept, query_string=f"lastEventId={held}".encode()),
        ]
        store.down = True
        exchanges.append(await resume(kept, held))
        store.down = False
        exchanges.append(await handle(kept, **by_cancel(held)))
        exchanges.append(await handle(kept, **by_cancel(UNKNOWN)))
        async with returning(kept, id_of(failing, 1), path="/fails") as fresh:
            exchanges.append(fresh)
            await fresh.until_end()
    await asyncio.sleep(100)
    assert len(caplog.records) > 50
    for exchange in (first, failing):
        secret = id_of(exchange, 0)[:22]
        assert re.fullmatch(r"[A-Za-z0-9_-]{22}", secret)
        assert secret not in caplog.text
        for other in exchanges:
            shown = b"".join(name + value for name, value in other.start["headers"])
            assert secret.encode() not in shown
    assert UNKNOWN[:22] not in caplog.text


async def test_a_stored_log_holds_no_secret_beside_the_events() -> None:
    store = memory()
    app = resumable(Counting(1), store=store)
    whole = await read(app, ANN)
    found = await store.find(whole.headers[b"x-stream-id"].decode())
    assert found is not None
    assert id_of(whole, 0)[:22] not in repr(found)
    assert "Bearer" not in repr(found)
