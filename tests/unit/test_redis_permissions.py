"""Each feature works with exactly the Redis permissions that its page of the docs lists."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from sse_middleware import MemoryStore, SSEMiddleware
from sse_middleware.channels import BlockingPublisher, Publisher, close_channels, subscribe
from sse_middleware.limits.open_rate import supports_installed_redis
from sse_middleware.stores.base import LogState
from sse_middleware.stores.redis import RedisStore
from sse_middleware.testing import FakeStream, Reader
from tests.support.channel_contract import take, whole
from tests.support.limiting import PLAIN, answer, asked, limited, steady_rate, tab
from tests.support.redis_channels import ask
from tests.support.redis_server import RedisServer
from tests.support.resuming import Counting
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def url_of_user(server: RedisServer, page: str) -> str:
    """Return the URL of a user with the permissions on a page, in a Redis without data."""
    text = (DOCS / page).read_text()
    rules = " ".join(re.findall(r"`((?:~sse:\*|\+(?!cluster))[^`]*)`", text))
    server.client.flushall()
    ask(server, "ACL", "LOG", "RESET")
    ask(server, "ACL", "SETUSER", "app", "reset", "on", ">pass", *rules.split())
    return server.patient_url.replace("redis://", "redis://app:pass@")


def refused(server: RedisServer) -> list[dict[str, Any]]:
    """Return the refusals, but for the name of the client library, which Redis may ignore."""
    entries: list[dict[str, Any]] = server.client.acl_log()
    return [entry for entry in entries if not entry["object"].startswith("client")]


async def test_streams(any_server: RedisServer) -> None:
    url = url_of_user(any_server, "resume.md")
    here, there = RedisStore(url), RedisStore(url)
    stream = FakeStream(here)
    stream.write(3)
    await stream.log.flush()
    reading = asyncio.ensure_future(Reader(there, stream.id).read_all())
    await until(lambda: bool(stream.log.has_readers), "a reader was to be known")  # type: ignore[attr-defined]
    stream.log.set_name("a name")
    stream.write(3)
    stream.log.end(LogState.FINISHED)
    await reading
    gone = FakeStream(here)
    gone.write()
    await gone.log.flush()
    gone.log.end(LogState.GONE)
    await here.close()
    await there.close()
    assert refused(any_server) == []


async def test_channels(any_server: RedisServer) -> None:
    url = url_of_user(any_server, "channels.md")
    reading = asyncio.ensure_future(whole(subscribe("channel", url=url)))
    async with Publisher(url, channel_max_events=3) as one, Publisher(url) as other:
        assert await one.ack("channel")
        assert not await other.ack("channel")
        for number in range(9):
            assert await one.publish("channel", "step", number, key=f"{number}")
            await asyncio.sleep(0)
        (event,) = await take(subscribe("channel", url=url), 1)
        with BlockingPublisher(url) as blocking:
            assert await asyncio.to_thread(blocking.publish, "channel", "step", 9)
        assert await other.finish("channel")
    await reading
    assert len(await whole(subscribe("channel", url=url, history=event.id))) > 0
    ask(any_server, "ACL", "SETUSER", "app", "&sse_session:*")
    (event,) = await whole(subscribe("other", url=url, compat="sse_session", ack_timeout=0.5))
    assert event.event == "error"
    await close_channels()
    assert refused(any_server) == []


def limited_app(url: str, **options: Any) -> SSEMiddleware:
    """Return an app as one process of several has it."""
    options |= {"store": MemoryStore(), "registry": CollectorRegistry()}
    return limited(Counting(1000, pause=0.05), redis_url=url, **options)


async def close(*apps: SSEMiddleware) -> None:
    for app in apps:
        assert app._admission is not None
        await app._admission.close()


async def test_limits(any_server: RedisServer) -> None:
    url = url_of_user(any_server, "limits.md")
    apps = [limited_app(url, max_streams_per_client=1) for _ in range(2)]
    async with tab(apps[0]) as first:
        assert await answer(first) == (200, "")
        async with asked(apps[1], PLAIN) as second:
            assert await answer(second) == (429, "too_many_streams")
        async with tab(apps[1]) as third:  # evicts the first
            assert await answer(third) == (200, "")
    await close(*apps)
    assert refused(any_server) == []


@pytest.mark.skipif(not supports_installed_redis(), reason="limits needs redis-py 5.2")
async def test_rates(any_server: RedisServer) -> None:
    url = url_of_user(any_server, "limits.md")
    apps = [limited_app(url, open_rate=steady_rate(3)) for _ in range(2)]
    outcomes: list[tuple[int, str]] = []
    for number in range(4):
        async with asked(apps[number % 2], PLAIN) as exchange:
            outcomes.append(await answer(exchange))
    assert outcomes == [(200, "")] * 3 + [(429, "open_rate_exceeded")]
    many = limited_app(url, open_rate="1000/second")
    while "cmdstat_rename" not in any_server.client.info("commandstats"):  # at the next second
        async with asked(many, PLAIN) as exchange:
            assert await answer(exchange) == (200, "")
    await close(*apps, many)
    assert refused(any_server) == []
