"""Batching as a property: any app and any client get all events in order."""

import asyncio
import re
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Send

from sse_middleware.stream.timers import TICK_SECONDS
from tests.support.asgi import EVENTSOURCE, Exchange, body, http_scope, stream_start
from tests.support.batching import (
    OPTIONS,
    Headers,
    SlowExchange,
    assert_whole,
    last,
    middleware,
    nothing_left,
    turns,
    virtual_loop,
)
from tests.support.clock import VirtualClockLoop
from tests.support.samples import sampled

pytestmark = pytest.mark.anyio


STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 12)),  # so many chunks at once
    st.tuples(st.just("turn"), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.sampled_from([TICK_SECONDS / 2, TICK_SECONDS, 0.5, 1.7])),
    st.tuples(st.just("hold the loop"), st.sampled_from([TICK_SECONDS / 2, TICK_SECONDS, 1.2])),
    st.tuples(st.just("block"), st.sampled_from([0.01, 0.4, 3.0])),
)
"""The actions of an app and of its client, which continues to read by itself."""


@st.composite
def chunkings(draw: st.DrawFn) -> list[bytes]:
    """Draw the chunks of an app: whole events, events cut anywhere, comments, large ones."""
    chunks: list[bytes] = []
    number = 0
    for kind in draw(st.lists(st.sampled_from("wwwwcmlb"), max_size=40)):
        number += kind != "c"
        end = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
        block = b"data: %d " % number + b"x" * (7000 if kind == "b" else 0) + end + end
        if kind == "w":
            chunks.append(block)
        elif kind == "c":
            chunks.append(b": a comment" + end)
        elif kind == "l":  # two events in one chunk
            number += 1
            chunks.append(block + b"data: %d " % number + end + end)
        else:
            cuts = sorted(draw(st.lists(st.integers(0, len(block)), min_size=1, max_size=4)))
            chunks += [block[one:other] for one, other in pairwise([0, *cuts, len(block)])]
    return chunks


@settings(deadline=None, max_examples=sampled(300))
@given(
    chunks=chunkings(),
    steps=st.lists(STEPS, max_size=30),
    end=st.sampled_from(["ends", "returns", "raises"]),
    headers=st.sampled_from([EVENTSOURCE, []]),
    options=st.sampled_from(OPTIONS[:3]),
    slow=st.booleans(),
)
def test_any_app_and_client_get_all_events_in_order(
    chunks: list[bytes],
    steps: list[tuple[str, Any]],
    end: str,
    headers: Headers,
    options: dict[str, Any],
    *,
    slow: bool,
) -> None:
    async def behave(exchange: Exchange, send: Send) -> None:
        loop = virtual_loop()
        await send(stream_start())
        left = iter(chunks)
        for what, how in steps:
            if what == "send":
                for _ in range(how):
                    if (chunk := next(left, None)) is not None:
                        await send(body(chunk))
            elif what == "turn":
                await turns(how)
            elif what == "wait":
                await asyncio.sleep(how)
            elif what == "hold the loop":
                loop.pass_time(how)
            else:
                exchange.block()
                loop.call_later(how, exchange.unblock)
        for chunk in left:
            await send(body(chunk))
        if end == "ends":
            await send(last())
        elif end == "raises":
            loop.call_later(0.5, exchange.unblock)
            raise ValueError
        else:
            loop.call_later(0.5, exchange.unblock)

    async def run() -> Exchange:
        exchange = (SlowExchange if slow else Exchange)(http_scope(headers=headers))
        app = middleware(behave, exchange, **{"heartbeat_interval": 1, **options})
        async with nothing_left():
            with suppress(ValueError):
                await app(exchange.scope, exchange.receive, exchange.send)
        return exchange

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        exchange = runner.run(run())
    app_bytes = b"".join(chunks)
    assert_whole(exchange, len(re.findall(rb"data: ", app_bytes)))
    if headers:
        assert exchange.names[0] == "start"
        assert exchange.names[-1] == {"ends": "complete", "raises": "error"}.get(
            end, exchange.names[-1]
        )
    else:
        assert re.sub(rb": heartbeat(\r?\n){2}", b"", exchange.body) == app_bytes
