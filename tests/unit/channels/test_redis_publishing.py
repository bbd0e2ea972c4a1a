"""Publishing in Redis from whatever runs it: loops, threads, forks, jobs that are interrupted."""

import asyncio
import os
import subprocess
import sys
import textwrap

import pytest

from sse_middleware.channels import (
    ChannelEvent,
    Publisher,
    close_channels,
    publish_batch,
    subscribe,
)
from sse_middleware.channels.publish_batch import PublisherSequence
from tests.support.channel_contract import parsed, whole
from tests.support.redis_channels import KEYS
from tests.support.redis_server import RedisServer


async def read(channel: str, url: str) -> list[ChannelEvent]:
    try:
        return await whole(subscribe(channel, url=url))
    finally:
        await close_channels()


def test_a_publisher_serves_one_loop_after_the_other(running_server: RedisServer) -> None:
    publisher = Publisher(running_server.patient_url)

    async def publish(number: int) -> None:
        await publisher.publish("loops", "n", number)
        await publisher.close()

    for number in range(3):
        asyncio.run(publish(number))
    assert running_server.client.xlen(KEYS.channel("loops").log) == 3


FORKING = """
    import os, sys, threading
    from sse_middleware.channels import BlockingPublisher
    publisher = BlockingPublisher(sys.argv[1])
    for number in range(5):
        publisher.publish("forks", "parent", number)
    children = []
    for name in range(3):
        child = os.fork()
        if not child:
            for number in range(20):
                assert publisher.publish("forks", f"child-{name}", number)
            os._exit(0)
        children.append(child)
    for number in range(5, 20):
        publisher.publish("forks", "parent", number)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    publisher.finish("forks")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
def test_a_publisher_that_was_forked_publishes_all_of_its_own(running_server: RedisServer) -> None:
    command = [sys.executable, "-c", textwrap.dedent(FORKING), running_server.patient_url]
    subprocess.run(command, check=True, timeout=30)
    found = parsed(asyncio.run(read("forks", running_server.patient_url)))
    for name in ("parent", "child-0", "child-1", "child-2"):
        assert [number for event, number in found if event == name] == list(range(20))


def test_no_two_publishers_have_one_name() -> None:
    one, other = PublisherSequence(), PublisherSequence()
    assert one.publisher != other.publisher
    assert [one.next(), one.next(), other.next()] == [1, 2, 1]


def test_the_numbers_of_a_publisher_are_kept_longer_than_it_tries() -> None:
    assert publish_batch._SEEN_SECONDS > 5 * publish_batch.PUBLISH_SECONDS
