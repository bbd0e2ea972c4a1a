"""Keys in Redis that another program has written: no value of any type breaks a request."""

import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_middleware import SSEMiddleware
from sse_middleware.errors import StoreError
from sse_middleware.http.response_head import serialize_headers
from sse_middleware.stores.base import Log, LogInfo, LogListener
from sse_middleware.stores.memory import MemoryStore
from sse_middleware.stores.redis.keys import Keys, digest
from sse_middleware.stores.redis.metadata import LogMetadata, pack_metadata, unpack_metadata
from sse_middleware.testing import log_info
from tests.support.asgi import EVENTSOURCE, Exchange, handle, http_scope, running, stream_of
from tests.support.middleware import marking
from tests.support.redis_server import RedisServer
from tests.support.redis_stores import stores
from tests.support.samples import sampled_turns
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

AUTHORIZATION = (b"authorization", b"Bearer a")
STRANGE: list[Any] = [
    *(None, True, False, 0, -1, 5.5, 10**13, 10**400, -math.inf, math.nan, "", "x", "x\r\ny: z"),
    *("x\n\ndata: y", "\0", "\ud800", "x" * 100, [], [1], {}, {"a": 1}, [[]]),
]
VALID = json.loads(pack_metadata(log_info(), "process", ["name"], b""))
DATA = [
    *(b"", b"\xff\xfe", b"null", b"1", b'"text"', b"{}", b"[]", b"[1,2,3]", b"[null,null,null]"),
    *(
        b'[{"headers": ""},"p","n"]',
        b'[{"a": 1},"p","n"]',
        b"[" * 100_000,
        b"9" * 5000,
        b"[[],[],[]]",
    ),
    json.dumps([VALID[0], {}, []]).encode(),
    json.dumps([VALID[0], "process", None]).encode(),
]


def with_field(name: str, value: Any) -> bytes:
    return json.dumps([{**VALID[0], name: value}, "process", "name"]).encode()


@pytest.mark.parametrize("data", DATA)
def test_metadata_in_an_unknown_format_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpack_metadata(data)


@pytest.mark.parametrize("name", VALID[0])
@pytest.mark.parametrize("value", STRANGE, ids=repr)
def test_a_field_of_another_type_is_refused_or_harmless(name: str, value: Any) -> None:
    try:
        data = with_field(name, value)
        info = unpack_metadata(data).info
    except ValueError:
        return
    assert type(value) in {type(VALID[0][name]), int, float, str, type(None)}
    texts = (info.stream_id, info.identity, info.secret, info.traceparent)
    for sent in (*texts, info.terms.event_prefix):
        assert sent.isascii()
        assert "\n" not in sent
    assert b"\n" not in info.headers.replace(b"\r\n", b"")
    assert all(b":" in line for line in info.headers.split(b"\r\n")[:-1])


@pytest.mark.parametrize(
    "lines", ["x", "x: y", "x y: z\r\n", ": y\r\n", "a: b\r\n\r\n", "a: \0\r\n"]
)
def test_headers_that_no_response_has_are_refused(lines: str) -> None:
    with pytest.raises(ValueError):
        unpack_metadata(with_field("headers", lines))


header_names = st.from_regex(rb"[a-zA-Z0-9!#$%&'*+.^_`|~-]+", fullmatch=True)


@given(
    headers=st.lists(st.tuples(header_names, st.binary().filter(lambda value: b"\0" not in value))),
    path=st.text(),
    route=st.text(),
    names=st.lists(st.text()),
)
def test_metadata_survives_a_round_trip(
    headers: list[tuple[bytes, bytes]], path: str, route: str, names: list[str]
) -> None:
    info = log_info(headers=serialize_headers(headers), path=path, route=route)
    packed = pack_metadata(info, "process", names, b"")
    assert unpack_metadata(packed) == LogMetadata(info, "process", tuple(names))


def test_the_terms_of_a_stream_are_stored_as_fields_of_the_log() -> None:
    info = log_info(
        stream_id="s",
        identity="i",
        body_digest=None,
        path="/",
        route="/",
        headers=b"a:\xe9\r\n",
        traceparent="",
    )
    assert pack_metadata(info, "process", ["name"], b"") == (
        b'[{"stream_id": "s", "path": "/", "identity": "i", "method": "POST", "body_digest": null, '
        b'"origin": "https://example.org", "headers": "a:\\u00e9\\r\\n", "route": "/", '
        b'"app_ids": false, "opened_on": 1800000000.125, "secret": "", '
        b'"asks_for_stream": false, "keep_seconds": null, "traceparent": "", '
        b'"max_seconds": 60.0, "rotates": false, "heartbeat_interval": 5.0, '
        b'"silence_threshold": null, '
        b'"event_prefix": "", "retry_ms": 2000}, "process", "name"]'
    )


@pytest.mark.parametrize("text", ["/" + "\xe9" * 30_000, "/" + "x" * 60_000])
async def test_the_stored_metadata_is_small_whatever_a_client_sends(text: str) -> None:
    store = Recording()
    origin = (b"origin", text.encode("latin-1"))
    app = marking(stream_of(b"data: x\n\n"), store=store)
    raw_path = text.encode("latin-1")
    await handle(app, headers=[*EVENTSOURCE, origin], path=text, raw_path=raw_path)
    (info,) = store.infos
    assert len(pack_metadata(info, "process", ["name"], b"")) < 15_000


class Recording(MemoryStore):
    """Keep the metadata of all streams."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: list[LogInfo] = []

    def create(self, info: LogInfo, producer: LogListener) -> Log:
        self.infos.append(info)
        return super().create(info, producer)


# A real Redis


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    running_server.client.flushall()
    return running_server


VALUES: list[Any] = [
    *(["list"], {"set"}, {"hash": "x"}, *DATA[:6], b"[" * 50_000),
    {"entry": {"s": "running", "e": "x"}},
    {"entry": {"s": b"\xff", "e": "x"}},
    {"entry": {"s": "finished"}},
    {"entry": {"f": "x", "l": "", "d": ""}},
    {"entry": {"f": "9" * 5000, "l": "", "d": ""}},
    {"entry": {"f": "-5", "l": "xxxx", "d": ""}, "id": "1-0"},
    {"entry": {"f": "1", "l": "xxx", "d": "data: x\n\n"}, "id": "1-0"},
    {"entry": {"f": "1", "l": b"\xff\xff\xff\xff", "d": "data: x\n\n"}, "id": "1-0"},
    {"entry": {"x": "y"}, "id": "18446744073709551615-18446744073709551615"},
]


async def test_no_value_of_any_key_breaks_the_requests_of_clients_that_reconnect(
    server: RedisServer,
) -> None:
    here, there = (
        marking(stream_of(*[b"data: x\n\n"] * 3), redis_url=server.url) for _ in range(2)
    )
    exchange = await handle(here, headers=[*EVENTSOURCE, AUTHORIZATION])
    held = exchange.events[1].id or ""
    await here._context.store.close()
    client: Any = server.client
    keys = {key: client.dump(key) for key in client.scan_iter() if b"lease" not in key}
    assert len(keys) >= 3
    changes = [(key, value) for key in keys for value in VALUES]
    (info,) = [key for key in keys if key.endswith(b":info")]
    fields, *others = json.loads(client.get(info))
    changes += [
        (info, json.dumps([{**fields, name: value}, *others]).encode())
        for name in fields
        for value in STRANGE
    ]
    try:
        for key, value in [changes[turn] for turn in sampled_turns(len(changes))]:
            for name, dumped in keys.items():
                client.restore(name, 60_000, dumped, replace=True)
            server.put(key.decode(), value)
            assert await status(there, held) in (200, 204), (key, value)
    finally:
        await there._context.store.close()


async def test_no_value_of_a_name_breaks_a_lookup(server: RedisServer) -> None:
    async with stores(server) as (store,):
        for value in VALUES:
            server.put(Keys("sse:").name(digest("chat")), value)
            with suppress(StoreError):
                assert await store.find_named("chat") is None


async def status(app: SSEMiddleware, held: str) -> int:
    """Return the status of the response to a client that reconnects, and read some of its body."""
    headers = [*EVENTSOURCE, AUTHORIZATION, (b"last-event-id", held.encode())]
    exchange = Exchange(http_scope(headers=headers))
    async with running(app, exchange) as exchange:
        await until(lambda: exchange.ended or len(exchange.messages) > 1, "there is no response")
    return exchange.status
