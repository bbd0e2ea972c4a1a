"""Plain messages of Redis on the topic of a session, beside the events of its channel."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from sse_middleware.channels import (
    BlockingPublisher,
    ChannelEvent,
    Publisher,
    close_channels,
    sse_event_streamer,
    subscribe,
)
from sse_middleware.channels.base import Limits
from sse_middleware.channels.events import EMPTY, Position, StoredEvent
from sse_middleware.channels.session_messages import (
    MessageQueue,
    messages_before_end,
    parse_session_message,
)
from tests.support.channel_contract import code, new_channel, parsed, take, whole
from tests.support.redis_channels import ask, count
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import Proxy, RedisServer
from tests.support.waiting import HANG_SECONDS, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
async def _closed(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
    monkeypatch.setenv("SSE_REDIS_URL", server.patient_url)
    yield
    await close_channels()


def send(server: RedisServer, session: str, message: str | bytes) -> int:
    """Publish as a worker in any language does; return the number of subscribers."""
    return int(ask(server, "PUBLISH", f"sse_session:{session}", message))


def say(server: RedisServer, session: str, event: str, payload: Any = None) -> int:
    return send(server, session, json.dumps({"event_type": event, "payload": payload}))


def has_subscriber(server: RedisServer, session: str) -> bool:
    return bool(ask(server, "PUBSUB", "NUMSUB", f"sse_session:{session}")[1])


async def until_subscribed(server: RedisServer, session: str) -> None:
    """Repeat the acknowledgement until there is a subscriber, as workers do."""
    await until(lambda: say(server, session, "worker_ack", {}) > 0, "no subscriber")


@asynccontextmanager
async def reading(
    server: RedisServer, session: str, **options: Any
) -> AsyncIterator["asyncio.Task[list[ChannelEvent]]"]:
    events = sse_event_streamer(session, compat="sse_session", **options)
    task = asyncio.ensure_future(whole(events))
    try:
        await until_subscribed(server, session)
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_worker_in_any_language_answers_a_session(server: RedisServer) -> None:
    session = new_channel()
    async with reading(server, session) as task:
        say(server, session, "AgentThoughtStream", {"char": "é"})
        send(server, session, '{"event_type": "FinalAnswerStream",\n "payload": {"char": "4"}}')
        send(server, session, '{"event_type": "FinalAnswerStreamEnd"}')
        say(server, session, "late")
        assert [bytes(event) for event in await task] == [
            b'data: {"event_type":"worker_ack","payload":{}}\n\n',
            'data: {"event_type":"AgentThoughtStream","payload":{"char":"é"}}\n\n'.encode(),
            b'data: {"event_type":"FinalAnswerStream","payload":{"char":"4"}}\n\n',
            b'data: {"event_type":"FinalAnswerStreamEnd","payload":null}\n\n',
        ]


async def test_all_readers_receive_the_messages_after_they_have_subscribed(
    server: RedisServer,
) -> None:
    session = new_channel()
    early = sse_event_streamer(session, compat="sse_session")
    first = asyncio.ensure_future(anext(early))
    await until_subscribed(server, session)
    await first
    say(server, session, "step", 1)
    while (await anext(early)).event != "step":
        pass
    async with reading(server, session) as late:
        say(server, session, "FinalAnswerStreamEnd")
        both = [[event.event for event in await whole(early)]]
        both.append([event.event for event in await late])
    assert both[0][-1] == both[1][-1] == "FinalAnswerStreamEnd"
    assert "step" not in both[1]


async def test_a_reader_receives_the_events_of_the_channel_too(
    server: RedisServer, publisher: Publisher
) -> None:
    session = new_channel()
    await publisher.publish(session, "queued", {"place": 1})
    async with reading(server, session, ids=True) as task:
        for number in range(3):
            say(server, session, "step", number)
            await publisher.publish(session, "page", number)
        await publisher.finish(session)
        events = await task
    assert [event.json() for event in events if event.event == "step"] == [0, 1, 2]
    assert [event.json() for event in events if event.event == "page"] == [0, 1, 2]
    assert (events[0].event, events[-1].event) == ("queued", "complete")
    for event in events:
        in_channel = event.event not in ("worker_ack", "step")
        assert (event.id is not None) is (b"\nid: " in bytes(event)) is in_channel
    rest = await whole(subscribe(session, history=events[0].id))
    assert parsed(rest) == [*(("page", number) for number in range(3)), parsed(events)[-1]]


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ("a b", "a b"),
        ("A B", "A B"),
        ("a b A B", "a b A B"),
        ("a end A B", "a A B end"),
        ("end b A", "A end"),
        ("a end b end A", "a A end"),
        ("a end A END B", "a A end"),
        ("a A END B", "a A END B"),  # the reader ends at END
        ("a end", "a end"),
        ("end", "end"),
    ],
)
async def test_the_messages_of_a_read_are_before_the_end_of_the_channel(
    read: str, expected: str
) -> None:
    """Lower case: events of the channel; upper case: messages."""
    entries = [
        StoredEvent(EMPTY if name.isupper() else Position("a", number), name, "")
        for number, name in enumerate(read.split())
    ]
    found = messages_before_end(entries, {"end", "END"})
    assert " ".join(entry.event for entry in found) == expected


async def test_a_reader_that_is_late_receives_the_messages_before_the_end(
    server: RedisServer,
) -> None:
    session = new_channel()
    async with reading(server, session) as task:
        with BlockingPublisher(server.patient_url) as publisher:  # the reader cannot run meanwhile
            for number in range(3):
                say(server, session, "step", number)
                publisher.publish(session, "page", number)
            publisher.finish(session)
        names = [event.event for event in await task if event.event != "worker_ack"]
    assert sorted(names[:-1]) == ["page"] * 3 + ["step"] * 3
    assert names[-1] == "complete"


async def test_messages_are_read_on_request_only(server: RedisServer) -> None:
    session = new_channel()
    (event,) = await whole(sse_event_streamer(session, ack_timeout=0.3))
    assert code(event) == "worker_timeout"
    task = asyncio.ensure_future(whole(sse_event_streamer(session, ack_timeout=None)))
    await until(lambda: bool(ask(server, "PUBSUB", "CHANNELS", "sse:*")), "no subscriber")
    assert say(server, session, "FinalAnswerStreamEnd") == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_message_shows_that_a_worker_is_present(server: RedisServer) -> None:
    session = new_channel()
    async with reading(server, session, ack_timeout=2.0, idle_timeout=0.5) as task:
        say(server, session, "step", 1)
        assert code((await task)[-1]) == "idle_timeout"


async def test_a_missing_worker_is_reported(server: RedisServer) -> None:
    events = sse_event_streamer(new_channel(), compat="sse_session", ack_timeout=0.3)
    (event,) = await whole(events)
    assert code(event) == "worker_timeout"


MALFORMED = [
    b"",
    b"hello",
    b"[]",
    b'"text"',
    b"12",
    b"null",
    b"{}",
    b'{"event_type": 1}',
    b'{"event_type": ["a"], "payload": 1}',
    b'{"event_type": "a\\nb"}',
    b'{"event_type": ""}',
    b'{"event_type": "' + b"x" * 129 + b'"}',
    b'{"event_type": "a", "payload": NaN}',
    b'{"event_type": "a", "payload": 1e999}',
    b'{"event_type": "a", "payload": "\\ud800"}',
    b'{"event_type": "\\ud800"}',
    b'{"event_type": "a", "payload": ' + b"[" * 100_000,
    b'{"event_type": "a", "payload": ' + b"9" * 10_000 + b"}",
    b'{"event_type": "\xff"}',
    '{"event_type": "a"}'.encode("utf-16"),
    b'{"event_type": "a"} {"event_type": "b"}',
]


@pytest.mark.parametrize("message", MALFORMED, ids=range(len(MALFORMED)))
async def test_a_message_of_another_format_is_none(message: bytes) -> None:
    assert parse_session_message(message) is None


async def test_a_message_of_another_format_is_skipped_and_counted(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    session, before = new_channel(), count("malformed")
    async with reading(server, session) as task:
        send(server, session, "s3cret")
        send(server, session, '{"event_type": "s3cret\\nevent: admin"}')
        say(server, session, 'FinalAnswerStreamEnd"}\n\ndata: x')
        say(server, session, "FinalAnswerStreamEnd", "\r\n\r\ndata: x\n\n")
        events = await task
    assert [event.event for event in events][-2:] == ["worker_ack", "FinalAnswerStreamEnd"]
    assert all(event.count(b"\n") == 2 for event in events)
    assert count("malformed") == before + 3
    assert caplog.text.count("a message on a topic sse_session:... is skipped") == 1
    assert "s3cret" not in caplog.text
    assert session not in caplog.text


async def test_a_reader_that_has_messages_ends_if_the_connection_was_lost(
    server: RedisServer,
) -> None:
    session = new_channel()
    async with Proxy(server) as proxy:
        async with reading(server, session, url=proxy.url) as task:
            say(server, session, "step", 1)
            await until(lambda: has_subscriber(server, session), "no subscriber")
            ask(server, "CLIENT", "KILL", "TYPE", "pubsub")
            events = await task
        assert [event.event for event in events][-2:] == ["step", "error"]
        assert code(events[-1]) == "truncated"
        await close_channels()  # before the proxy


async def test_a_reader_without_a_message_continues_after_a_lost_connection(
    server: RedisServer, publisher: Publisher
) -> None:
    session = new_channel()
    await publisher.publish(session, "queued", 1)
    events = sse_event_streamer(session, compat="sse_session")
    await take(events, 1)
    await until(lambda: has_subscriber(server, session), "no subscriber")
    rest = asyncio.ensure_future(whole(events))
    ask(server, "CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: not has_subscriber(server, session), "still a subscriber")
    await until_subscribed(server, session)
    say(server, session, "FinalAnswerStreamEnd")
    assert {event.event for event in await rest} == {"worker_ack", "FinalAnswerStreamEnd"}


async def test_a_slow_reader_is_notified_of_messages_that_were_dropped(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSE_CHANNEL_MAX_EVENTS", "10")
    session = new_channel()
    events = sse_event_streamer(session, compat="sse_session")
    first = asyncio.ensure_future(anext(events))
    await until_subscribed(server, session)
    await first
    for number in range(20):
        say(server, session, "step", number)
    say(server, session, "FinalAnswerStreamEnd")
    async with Publisher() as publisher:  # of a later event, on the same connection
        await publisher.publish(session, "later", 1)
    await asyncio.sleep(0.5)
    rest = [event for event in await whole(events) if event.event not in ("worker_ack", "later")]
    numbers = [event.json() for event in rest[:-1]]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) <= 10
    assert code(rest[-1]) == "truncated"


async def test_a_queue_is_bounded_in_bytes_too() -> None:
    wakes: list[None] = []
    queue = MessageQueue(lambda: wakes.append(None), Limits(max_bytes=100))
    event = parse_session_message(b'{"event_type": "a", "payload": "' + b"x" * 58 + b'"}')
    assert event is not None
    for _ in range(3):
        queue.put(event)
    assert queue.take() == [event]
    assert queue.has_lost
    queue.put(event)
    assert queue.take() == []  # what follows a gap is not received
    assert len(wakes) == 4


async def test_readers_leave_no_subscription(server: RedisServer) -> None:
    session = new_channel()
    async with reading(server, session):
        pass
    await until(lambda: ask(server, "PUBSUB", "CHANNELS") == [], "still a subscriber")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


async def test_any_node_of_a_cluster_takes_the_messages(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSE_REDIS_URL", cluster.patient_url)
    session = new_channel()
    async with (
        Publisher() as publisher,
        aclosing(sse_event_streamer(session, compat="sse_session")) as events,
        asyncio.timeout(HANG_SECONDS),
    ):
        await publisher.publish(session, "queued", 1)
        found = await take(events, 1)
        await until(
            lambda: any(has_subscriber(node, session) for node in cluster.nodes), "no subscriber"
        )
        for number, node in enumerate(cluster.nodes):  # nodes have no order among themselves
            say(node, session, "step", number)
            found += await take(events, 1)
        await publisher.finish(session)
        found += await take(events, 1)
    steps = [("step", number) for number in range(len(cluster.nodes))]
    assert parsed(found) == [("queued", 1), *steps, ("complete", {"reason": "finished"})]
