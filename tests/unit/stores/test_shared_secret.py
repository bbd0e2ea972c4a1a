"""The digests of identities in Redis are keyed with a secret that the processes share."""

import hashlib
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ResponseError

from sse_middleware import SSEMiddleware
from sse_middleware.http.request import SSERequest
from sse_middleware.limits.open_rate import supports_installed_redis
from sse_middleware.stores.redis.keys import Keys
from sse_middleware.stores.redis.shared_secret import SharedSecret
from sse_middleware.testing.streams import eventually
from tests.support.asgi import EVENTSOURCE, Exchange, http_scope, running, stream_of
from tests.support.middleware import marking
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

KEY = Keys("sse:").secret()
AUTHORIZATION = (b"authorization", b"Basic c3dvcmRmaXNo")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    running_server.client.flushall()
    return running_server


@asynccontextmanager
async def new_apps(
    server: RedisServer, count: int = 1, **options: Any
) -> AsyncGenerator[list[SSEMiddleware]]:
    """Make middlewares as different processes have them."""
    app = stream_of(*[b"data: x\n\n"] * 1000, pause=0.02)
    made = [marking(app, redis_url=server.url, **options) for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            if one._admission is not None:
                await one._admission.close()
            await one._context.store.close()


def request(*headers: tuple[bytes, bytes], last_event_id: str = "") -> Exchange:
    resumed = [(b"last-event-id", last_event_id.encode())] if last_event_id else []
    return Exchange(http_scope(headers=[*EVENTSOURCE, *headers, *resumed]))


async def identity_in(server: RedisServer) -> str:
    """Return the digest of the one stream in Redis."""

    async def infos() -> list[str]:
        return [key for key in server.all_keys() if key.endswith(":info")]

    await eventually(infos, bool, "the stream was to be written")
    (key,) = await infos()
    fields, *_ = json.loads(server.client.get(key) or b"")
    return str(fields["identity"])


async def names_of_a_resume(app: SSEMiddleware, exchange: Exchange) -> list[str]:
    async with running(app, exchange):
        await exchange.until("message")
        return exchange.names


@pytest.mark.parametrize("options", [{}, {"secret": "the secret of the workers"}])
async def test_a_stream_resumes_on_another_process_with_its_identity_only(
    server: RedisServer, options: dict[str, Any]
) -> None:
    first = request(AUTHORIZATION)
    async with new_apps(server, 2, **options) as (here, there), running(here, first):
        await first.until("message")
        await identity_in(server)
        held = first.events[-1].id or ""
        other = (b"authorization", b"Basic other")
        assert "reset" in await names_of_a_resume(there, request(other, last_event_id=held))
        resumed = await names_of_a_resume(there, request(AUTHORIZATION, last_event_id=held))
        assert resumed[0] == "start"


async def test_the_digest_in_redis_can_only_be_computed_with_the_secret(
    server: RedisServer,
) -> None:
    seen = set()
    for _ in range(2):
        server.client.flushall()
        exchange = request(AUTHORIZATION)
        async with new_apps(server) as (app,), running(app, exchange):
            await exchange.until("message")
            seen.add(await identity_in(server))
            assert server.client.get(KEY)
            assert 0 < server.client.pttl(KEY) <= 86_400_000
    assert len(seen) == 2
    value = AUTHORIZATION[1]
    for data in (value, b"%d:%b" % (len(value), value)):
        for person in (b"", b"authorization"):
            assert hashlib.blake2b(data, digest_size=16, person=person).hexdigest() not in seen


async def test_with_sse_secret_a_reader_of_redis_cannot_compute_it(server: RedisServer) -> None:
    secrets = ("the secret of one app", "the secret of another")
    seen = set()
    for secret in secrets:
        server.client.flushall()
        server.client.set(KEY, "known")
        exchange = request(AUTHORIZATION)
        async with new_apps(server, secret=secret) as (app,), running(app, exchange):
            await exchange.until("message")
            seen.add(await identity_in(server))
    assert len(seen) == 2


async def test_all_processes_have_the_secret_of_the_first_also_after_redis_was_emptied(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_middleware.stores.redis.shared_secret._CONFIRM_SECONDS", -1.0)

    async def send(commands: Any) -> list[Any]:
        pipe: Any = server.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return list(pipe.execute(raise_on_error=False))

    one, other = SharedSecret(KEY, send), SharedSecret(KEY, send)
    first = await one.load()
    assert await other.load() == first == await one.load()
    server.client.flushall()
    assert await other.load() == first == await one.load()
    server.client.set(KEY, "x" * 1000)
    assert await one.load() == b"x" * 64
    server.client.delete(KEY)
    server.client.lpush(KEY, "of another type")
    with pytest.raises(Exception, match="WRONGTYPE"):
        await one.load()


async def test_the_secret_of_a_redis_that_takes_no_writes_is_read() -> None:
    refused, other = ResponseError("OOM command not allowed"), ResponseError("WRONGTYPE")

    def loading(*answers: object) -> Awaitable[bytes]:
        async def send(_: object) -> tuple[object, ...]:
            return answers

        return SharedSecret(KEY, send).load()

    assert await loading(refused, refused, b"known") == b"known"
    for answers in ((refused, 0, None), (None, 1, other)):
        with pytest.raises(ResponseError):
            await loading(*answers)
    assert len(await loading(b"OK", 1, None)) == 64


async def test_a_store_of_one_process_has_no_key_to_share() -> None:
    one, other = SSEMiddleware(stream_of()), SSEMiddleware(stream_of())
    scope = http_scope(headers=[AUTHORIZATION])
    digests = {app._context.identities.of(SSERequest(scope)) for app in (one, one, other)}
    assert len(digests) == 2


@pytest.mark.skipif(not supports_installed_redis(), reason="limits supports redis-py from 5.2 on")
async def test_redis_contains_no_digest_of_a_client_that_has_a_lease_or_a_rate(
    server: RedisServer,
) -> None:
    pytest.importorskip("limits")
    keys = []
    for _ in range(2):
        server.client.flushall()
        limits: dict[str, Any] = {"max_streams_per_client": 5, "open_rate": "100/hour"}
        exchange = request(AUTHORIZATION)
        async with new_apps(server, **limits) as (app,), running(app, exchange):
            await exchange.until("message")
            found = [key for key in server.all_keys() if "limit:" in key or "rate" in key]
            assert len(found) >= 2
            keys.append({key.rsplit("/100/", 1)[0] for key in found})
    assert keys[0].isdisjoint(keys[1])
