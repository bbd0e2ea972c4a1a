"""The storage of channels in a process that sets no URL for them."""

import logging
import os
import subprocess
import sys
import textwrap

import pytest

from sse_middleware import SSEMiddleware
from sse_middleware._once import ValuesOfOwners
from sse_middleware.channels import BlockingPublisher, Publisher, publish_event, subscribe
from sse_middleware.channels.memory import ChannelMemory
from sse_middleware.channels.settings import channel_settings
from sse_middleware.stores.installed import RedisAddress
from tests.support.asgi import stream_of
from tests.support.channel_contract import new_channel, whole
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

Installed = ValuesOfOwners[object, RedisAddress]
URL = "redis://localhost:1/0"
OTHER_URL = "redis://localhost:2/0"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSE_REDIS_URL", raising=False)


def install(installed: Installed, url: str, prefix: str = "sse:") -> object:
    class Owner: ...

    owner = Owner()
    installed.set(owner, RedisAddress(url, prefix))
    return owner


@pytest.mark.usefixtures("closed_channels")
async def test_events_reach_the_readers_of_an_app_that_names_its_redis_by_an_argument(
    server: RedisServer, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = Publisher(), BlockingPublisher()  # as at the import of a module
    with monkeypatch.context() as patched:
        patched.setattr("sse_middleware.middleware.INSTALLED", installed)
        app = SSEMiddleware(stream_of(), redis_url=server.patient_url, redis_prefix="app:")
    channel = new_channel()
    reader = subscribe(channel)
    async with Publisher(server.patient_url, redis_prefix="app:") as worker:
        await worker.ack(channel)
        await early[0].publish(channel, "early", 1)
        early[1].publish(channel, "blocking", 2)
        await publish_event(channel, "short", 3)
        await worker.finish(channel)
    events = await whole(reader)
    await early[0].close()
    early[1].close()
    names = ["worker_ack", "early", "blocking", "short", "complete"]
    assert [event.event for event in events] == names
    assert app is not None


def test_a_url_and_the_variable_have_precedence(
    installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert channel_settings(None, {}).address() == ("", "sse:")
    one = install(installed, URL, "one:")
    assert channel_settings(None, {}).address() == (URL, "one:")
    assert channel_settings(None, {"redis_prefix": "mine:"}).address() == (URL, "mine:")
    assert channel_settings("", {}).address() == ("", "sse:")
    assert channel_settings(OTHER_URL, {}).address() == (OTHER_URL, "sse:")
    monkeypatch.setenv("SSE_REDIS_URL", OTHER_URL)
    assert channel_settings(None, {}).address() == (OTHER_URL, "sse:")
    monkeypatch.setenv("SSE_REDIS_URL", "")
    assert channel_settings(None, {}).address() == (URL, "one:")
    assert one is not None


def test_the_newest_middleware_with_a_redis_counts_while_it_lives(installed: Installed) -> None:
    owners = [install(installed, url) for url in (URL, OTHER_URL, "")]
    assert channel_settings(None, {}).address().url == OTHER_URL
    del owners[1]
    assert channel_settings(None, {}).address().url == URL


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ChannelMemory:
    """Let this process have read no channel so far."""
    memory = ChannelMemory(clock=lambda: clock[0])
    clock = [0.0]
    memory.set_time = lambda now: clock.__setitem__(0, now)  # type: ignore[attr-defined]
    monkeypatch.setattr("sse_middleware.channels.settings.MEMORY", lambda: memory)
    return memory


async def test_a_worker_without_redis_is_warned_once(
    memory: ChannelMemory, caplog: pytest.LogCaptureFixture
) -> None:
    await Publisher("").publish("channel", "step", 1)  # a memory that was chosen
    assert warnings(caplog) == []
    await Publisher().publish("channel", "step", 1)
    BlockingPublisher().publish("channel", "step", 1)
    (warning,) = warnings(caplog)
    for part in ("without SSE_REDIS_URL", "in its own memory", "Set SSE_REDIS_URL"):
        assert part in warning


async def test_a_process_that_reads_is_not_warned(
    memory: ChannelMemory, caplog: pytest.LogCaptureFixture
) -> None:
    with memory.follow("channel"):
        await Publisher().publish("channel", "step", 1)
    await Publisher().publish("channel", "step", 1)
    assert warnings(caplog) == []


async def test_a_web_process_is_warned_if_it_goes_on_without_a_reader(
    memory: ChannelMemory, installed: Installed, caplog: pytest.LogCaptureFixture
) -> None:
    owner, publisher = install(installed, ""), Publisher()
    for now in (0.0, 9.0):
        memory.set_time(now)  # type: ignore[attr-defined]
        await publisher.publish("channel", "step", 1)
    assert warnings(caplog) == []
    memory.set_time(11.0)  # type: ignore[attr-defined]
    await publisher.publish("channel", "step", 1)
    assert len(warnings(caplog)) == 1
    assert owner is not None


WORKER = """
    from sse_middleware.channels import BlockingPublisher
    with BlockingPublisher() as publisher:
        for number in range(3):
            publisher.publish("session", "step", number)
"""


def test_a_worker_process_without_redis_says_so_on_its_standard_error() -> None:
    environ = {name: value for name, value in os.environ.items() if name != "SSE_REDIS_URL"}
    command = [sys.executable, "-c", textwrap.dedent(WORKER)]
    run = subprocess.run(
        command, check=True, env=environ, timeout=60, capture_output=True, text=True
    )
    assert run.stderr.count("without SSE_REDIS_URL") == 1
