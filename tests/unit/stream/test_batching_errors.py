"""An error of the server in a background write reaches the app at its next send.

The streams of this file do not linger: a stream that lingers hides the errors of its server.
"""

import asyncio
from contextlib import suppress

import pytest
from starlette.types import Message, Send

from tests.support.asgi import Exchange, http_scope
from tests.support.batching import (
    PAUSE,
    Headers,
    assert_whole,
    both,
    burst,
    debug,
    event,
    last,
    middleware,
    nothing_left,
    open_stream,
)

pytestmark = pytest.mark.anyio


@both
async def test_an_error_of_a_background_write_shows_at_the_apps_next_send(headers: Headers) -> None:
    refusal = ConnectionResetError("gone")
    raised: list[BaseException] = []

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.refusal = refusal
        await asyncio.sleep(0.1)
        exchange.refusal = None
        for number in range(4, 7):
            try:
                await send(event(number))
            except OSError as exc:
                raised.append(exc)
        raise raised[0]

    exchange = Exchange(http_scope(headers=headers))
    async with nothing_left(collect=True):
        with pytest.raises(ConnectionResetError) as caught:
            await middleware(behave, exchange, linger_seconds=0)(
                exchange.scope, exchange.receive, exchange.send
            )
    assert caught.value is refusal
    assert refusal.__context__ is None
    assert raised[0] is refusal
    assert set(map(id, raised)) == {id(refusal)}
    assert_whole(exchange, 1)


@both
@pytest.mark.parametrize("message", [event(4), last(), debug(4)], ids=["event", "end", "other"])
async def test_an_error_of_a_background_write_shows_at_any_next_message_of_the_app(
    headers: Headers, message: Message
) -> None:
    refusal = ConnectionResetError("gone")

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.refusal = refusal
        await asyncio.sleep(0.1)
        exchange.refusal = None
        await send(message)

    exchange = Exchange(http_scope(headers=headers))
    with pytest.raises(ConnectionResetError):
        await middleware(behave, exchange, linger_seconds=0)(
            exchange.scope, exchange.receive, exchange.send
        )
    assert_whole(exchange, 1)
    assert not exchange.ended


@both
@pytest.mark.parametrize("how", ["returns", "raises"])
async def test_a_background_write_error_does_not_replace_a_return_or_an_exception_of_the_app(
    headers: Headers, how: str
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.refusal = ConnectionResetError("gone")
        await asyncio.sleep(0.1)
        if how == "raises":
            raise ValueError("its own")

    exchange = Exchange(http_scope(headers=headers))
    async with nothing_left():
        app = middleware(behave, exchange)
        if how == "returns":
            await app(exchange.scope, exchange.receive, exchange.send)
        else:
            with pytest.raises(ValueError, match="its own") as caught:
                await app(exchange.scope, exchange.receive, exchange.send)
            assert caught.value.__context__ is None
    assert_whole(exchange, 1)


@both
async def test_a_background_write_error_is_raised_from_a_send_that_waits_for_it(
    headers: Headers,
) -> None:
    refusal = ConnectionResetError("gone")
    raised: list[tuple[int, BaseException]] = []

    class Failing(Exchange):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if self.refusal is not None:
                raise self.refusal

    async def behave(exchange: Exchange, send: Send) -> None:
        await open_stream(send)
        await burst(send, 1, 4)
        exchange.block()
        await asyncio.sleep(0.1)
        asyncio.get_running_loop().call_later(1, exchange.unblock)
        asyncio.get_running_loop().call_later(1, setattr, exchange, "refusal", refusal)
        for number in range(4, 40):
            try:
                await send(event(number, size=1000))
            except OSError as exc:
                raised.append((number, exc))
                break

    async with nothing_left():
        exchange = Failing(http_scope(headers=headers))
        await middleware(behave, exchange, linger_seconds=0)(
            exchange.scope, exchange.receive, exchange.send
        )
    ((number, error),) = raised
    assert error is refusal
    assert number < 30  # there it waited for the client


class Counting(Exchange):
    """A server that counts its calls."""

    calls = 0

    async def send(self, message: Message) -> None:
        self.calls += 1
        await super().send(message)


@both
@pytest.mark.parametrize("batch", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("message", [event(2), debug(2)], ids=["event", "other"])
async def test_an_error_of_a_direct_write_is_raised_from_that_very_send_and_we_write_no_more(
    headers: Headers, message: Message, *, batch: bool
) -> None:
    refusal = ConnectionResetError("gone")

    async def behave(_: Exchange, send: Send) -> None:
        await open_stream(send)
        await send(event(1))
        await asyncio.sleep(PAUSE)
        exchange.refusal = refusal
        calls = exchange.calls
        with pytest.raises(ConnectionResetError) as caught:
            await send(message)
        assert caught.value is refusal
        await asyncio.sleep(20)
        assert exchange.calls == calls + 1

    async with nothing_left():
        exchange = Counting(http_scope(headers=headers))
        app = middleware(behave, exchange, heartbeat_interval=1, batch=batch, linger_seconds=0)
        await app(exchange.scope, exchange.receive, exchange.send)
    assert_whole(exchange, 1)


@both
async def test_there_is_no_gap_after_a_background_write_that_the_server_cancels(
    headers: Headers,
) -> None:
    class Cancelling(Exchange):
        async def send(self, message: Message) -> None:
            if b"data: 2 " in message.get("body", b""):
                raise asyncio.CancelledError
            await super().send(message)

    async def behave(_: Exchange, send: Send) -> None:
        await open_stream(send)
        for number in range(1, 13, 3):
            await burst(send, number, number + 3)
            await asyncio.sleep(PAUSE)
        await send(last())

    exchange = Cancelling(http_scope(headers=headers))
    with suppress(Exception):  # it may receive the end
        await middleware(behave, exchange, linger_seconds=0)(
            exchange.scope, exchange.receive, exchange.send
        )
    assert_whole(exchange, 1)
