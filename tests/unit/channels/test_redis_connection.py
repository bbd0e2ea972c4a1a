"""A connection for one purpose, also if redis-py hides its transport."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError
from starlette.responses import StreamingResponse

from sse_middleware.channels import Publisher, close_channels, subscribe
from sse_middleware.channels.redis_connection import RedisConnection, pack_commands
from sse_middleware.testing.streams import eventually
from tests.support.asgi import Exchange, http_scope, running
from tests.support.channel_contract import new_channel, parsed, take, whole
from tests.support.middleware import marking
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("closed_channels")]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def url(server: RedisServer) -> str:
    return server.patient_url


def hide_transport(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Remove the private attribute for our code, as if redis-py had renamed it.

    Returns:
        The modules that have asked for it.
    """
    asked: list[str] = []

    def get(connection: AbstractConnection) -> Any:
        caller = sys._getframe(1).f_globals["__name__"]
        if caller.startswith("redis."):
            found = vars(connection)  # one that is older than this has the attribute itself
            return found.get("renamed", found.get("_writer"))
        asked.append(caller)
        raise AttributeError("_writer")

    def set_writer(connection: AbstractConnection, writer: Any) -> None:
        vars(connection)["renamed"] = writer

    monkeypatch.setattr(AbstractConnection, "_writer", property(get, set_writer), raising=False)
    return asked


@pytest.fixture
async def hidden_transport(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[list[str]]:
    yield hide_transport(monkeypatch)
    await close_channels()


class Replies:
    """A connection with the replies that it has received."""

    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(url)
        self.replies: list[Any] = []
        self.connection = RedisConnection(self.client, self.replies.append)

    async def until_count(self, count: int) -> None:
        async def received() -> int:
            return len(self.replies)

        await eventually(received, lambda got: got >= count, f"{count} replies were to come")

    async def close(self) -> None:
        await self.connection.close()
        await self.client.aclose()


@pytest.fixture(params=[False, True], ids=["transport", "tasks"])
async def opened(
    request: pytest.FixtureRequest, url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[Replies]:
    if request.param:
        hide_transport(monkeypatch)
    replies = Replies(url)
    assert not replies.connection.is_open
    await replies.connection.open()
    yield replies
    await replies.close()


async def test_commands_are_answered_in_their_order_and_refusals_are_answers(
    opened: Replies,
) -> None:
    assert opened.connection.is_open
    commands: list[tuple[str | bytes, ...]] = [
        ("SET", "ä", b"\xff"),
        ("NO-COMMAND",),
        ("GET", "ä"),
        ("INCRBY", "n", "12"),
    ]
    opened.connection.send(pack_commands(commands[:2]))
    opened.connection.send(pack_commands(commands[2:]))
    await opened.until_count(4)
    assert isinstance(opened.replies[1], ResponseError)
    assert [*opened.replies[:1], *opened.replies[2:]] == [b"OK", b"\xff", 12]


async def test_a_connection_that_redis_closes_is_lost(
    opened: Replies, running_server: RedisServer
) -> None:
    opened.connection.send(pack_commands([("CLIENT", "ID")]))
    await opened.until_count(1)
    running_server.client.client_kill_filter(_id=str(opened.replies[0]))
    async with asyncio.timeout(10):
        assert isinstance(await opened.connection.lost, Exception)
    assert not opened.connection.is_open
    opened.connection.send(pack_commands([("PING",)]))  # no error, and no reply
    assert len(opened.replies) == 1


async def test_an_aborted_connection_has_its_reason(opened: Replies) -> None:
    reason = TimeoutError("too late")
    opened.connection.abort(reason)
    assert await opened.connection.lost is reason
    assert not opened.connection.is_open


async def test_an_error_of_the_receiver_closes_the_connection(
    opened: Replies, caplog: pytest.LogCaptureFixture
) -> None:
    error = ZeroDivisionError("a mistake")

    def receive(_: Any) -> None:
        raise error

    connection = RedisConnection(opened.client, receive)
    await connection.open()
    connection.send(pack_commands([("PING",)]))
    async with asyncio.timeout(10):
        assert await connection.lost is error
    await connection.close()
    assert "The connection to Redis is made again" in caplog.text


async def test_channels_work_without_the_private_attribute_of_redis_py(
    url: str, running_server: RedisServer, hidden_transport: list[str]
) -> None:
    channel = new_channel()
    async with Publisher(url) as publisher:
        await publisher.ack(channel)
        async with aclosing(subscribe(channel, url=url)) as events:
            await take(events, 1)
            for number in range(50):
                await publisher.publish(channel, "n", number)
            both = [publisher.publish(channel, "n", number) for number in (50, 51)]
            assert await asyncio.gather(*both) == [True, True]
            running_server.client.client_kill_filter(_type="pubsub")
            await publisher.publish(channel, "n", 52)
            running_server.client.client_kill_filter(_type="normal", skipme=True)
            await publisher.publish(channel, "n", 53)
            await publisher.finish(channel)
            numbers = [data for event, data in parsed(await whole(events)) if event == "n"]
    assert numbers == list(range(54))
    assert "sse_middleware.channels.redis_connection" in hidden_transport


async def test_a_stream_of_a_channel_works_without_the_private_attribute_of_redis_py(
    url: str, hidden_transport: list[str]
) -> None:
    channel = new_channel()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        events = subscribe(channel, url=url)
        response = StreamingResponse(events, media_type="text/event-stream")
        await response(scope, receive, send)

    middleware = marking(app, redis_url=url)
    async with Publisher(url) as publisher:
        await publisher.ack(channel)
        async with running(middleware, Exchange(http_scope())) as exchange:
            await exchange.until("worker_ack")
            await publisher.publish(channel, "step", 1)
            await exchange.until("step")
            await publisher.finish(channel)
            await exchange.until_end()
    assert [name for name in exchange.names if name != "start"] == [
        "worker_ack",
        "step",
        "complete",
    ]
    assert hidden_transport
    await middleware._context.store.close()
