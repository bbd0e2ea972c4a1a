"""The tests of channels, for each store of channels."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any, ClassVar

import pytest

from sse_middleware.channels import (
    BlockingPublisher,
    ChannelEvent,
    Publisher,
    close_channels,
    publish_event,
    sse_event_streamer,
    subscribe,
)
from sse_middleware.channels.events import Position
from sse_middleware.channels.subscriber import ChannelReader
from sse_middleware.errors import EventFormatError
from tests.support.waiting import HANG_SECONDS

pytestmark = pytest.mark.anyio


def new_channel() -> str:
    return secrets.token_urlsafe(16)


async def take(events: AsyncGenerator[ChannelEvent, None], count: int) -> list[ChannelEvent]:
    """Return the next events."""
    return [await anext(events) for _ in range(count)]


async def whole(events: AsyncGenerator[ChannelEvent, None]) -> list[ChannelEvent]:
    """Return all events, up to the end."""
    async with asyncio.timeout(HANG_SECONDS):
        return [event async for event in events]


def parsed(events: list[ChannelEvent]) -> list[tuple[str, Any]]:
    return [(event.event, event.json()) for event in events]


def code(event: ChannelEvent) -> Any:
    assert event.event == "error"
    return event.json()["error"]["code"]


async def reading_from_now(channel: str, **options: Any) -> "asyncio.Task[list[ChannelEvent]]":
    """Read a channel with `history="now"`, and return when the reader has its position."""
    started, start = asyncio.Event(), ChannelReader._start

    async def note(reader: ChannelReader) -> Position:
        position = await start(reader)
        started.set()
        return position

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ChannelReader, "_start", note)
        events = subscribe(channel, history="now", **options)
        reading = asyncio.get_running_loop().create_task(whole(events))
        await started.wait()
    return reading


class ChannelContract:
    """The tests; each store has a subclass.

    Attributes:
        url: of the store, empty for memory.
    """

    url: ClassVar[str] = ""

    @pytest.fixture(autouse=True)
    async def _closed(self, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[None]:
        monkeypatch.setenv("SSE_REDIS_URL", self.url)
        yield
        await close_channels()

    @pytest.fixture
    async def publisher(self, _closed: None) -> AsyncGenerator[Publisher]:
        async with Publisher(self.url) as publisher:
            yield publisher

    async def test_a_worker_that_is_first_loses_nothing(self, publisher: Publisher) -> None:
        channel = new_channel()
        assert await publisher.ack(channel)
        for number in range(3):
            assert await publisher.publish(channel, "step", {"number": number})
        assert await publisher.finish(channel)
        assert parsed(await whole(subscribe(channel))) == [
            ("worker_ack", {}),
            *(("step", {"number": number}) for number in range(3)),
            ("complete", {"reason": "finished"}),
        ]

    async def test_a_browser_that_is_first_loses_nothing(self, publisher: Publisher) -> None:
        channel = new_channel()
        reading = asyncio.ensure_future(whole(subscribe(channel)))
        await asyncio.sleep(0.05)
        await publisher.ack(channel)
        for number in range(3):
            await publisher.publish(channel, "step", number)
            await asyncio.sleep(0.01)
        await publisher.finish(channel, {"pages": 3})
        assert parsed(await reading) == [
            ("worker_ack", {}),
            *(("step", number) for number in range(3)),
            ("complete", {"pages": 3}),
        ]

    async def test_all_readers_see_one_order_and_each_publisher_its_own(self) -> None:
        channel = new_channel()
        async with AsyncExitStack() as stack:
            publishers = [await stack.enter_async_context(Publisher(self.url)) for _ in range(3)]

            async def publish(name: int) -> None:
                for number in range(0, 40, 4):
                    await asyncio.gather(
                        *(
                            publishers[name].publish(channel, str(name), number + more)
                            for more in range(4)
                        )
                    )

            readings = [
                asyncio.ensure_future(whole(subscribe(channel, ack_timeout=None))) for _ in range(5)
            ]
            await asyncio.gather(*(publish(name) for name in range(3)))
            await publishers[0].finish(channel)
            found = [parsed(events) for events in await asyncio.gather(*readings)]
        assert all(events == found[0] for events in found)
        for name in range(3):
            numbers = [number for event, number in found[0] if event == str(name)]
            assert numbers == list(range(40))

    async def test_threads_publish_too_and_each_in_its_order(self) -> None:
        channel = new_channel()
        reading = asyncio.ensure_future(whole(subscribe(channel, ack_timeout=None)))
        publisher = BlockingPublisher(self.url)

        def publish(name: int) -> None:
            for number in range(30):
                assert publisher.publish(channel, str(name), number)

        await asyncio.gather(*(asyncio.to_thread(publish, name) for name in range(6)))
        assert await asyncio.to_thread(publisher.finish, channel)
        found = parsed(await reading)
        await asyncio.to_thread(publisher.close)
        for name in range(6):
            assert [number for event, number in found if event == str(name)] == list(range(30))
        assert len(found) == 6 * 30 + 1

    async def test_one_worker_gets_the_job(self) -> None:
        channel = new_channel()
        async with Publisher(self.url) as one, Publisher(self.url) as other:
            blocking = BlockingPublisher(self.url)
            taken = [await one.ack(channel), await other.ack(channel), await one.ack(channel)]
            taken.append(await asyncio.to_thread(blocking.ack, channel))
            blocking.close()
        assert taken == [True, False, False, False]

    async def test_a_channel_ends_once(self, publisher: Publisher) -> None:
        channel = new_channel()
        assert await publisher.fail(channel, "out_of_paper", "The printer has no paper.")
        assert not await publisher.finish(channel)
        (event,) = await whole(subscribe(channel))
        assert event.json() == {
            "error": {
                "type": "worker_error",
                "code": "out_of_paper",
                "message": "The printer has no paper.",
            }
        }

    async def test_a_key_is_published_once(self, publisher: Publisher) -> None:
        channel = new_channel()
        assert await publisher.publish(channel, "page", 1, key="page-1")
        assert not await publisher.publish(channel, "page", 2, key="page-1")
        both = await asyncio.gather(
            *(publisher.publish(channel, "page", number, key="page-3") for number in (3, 4))
        )
        assert both == [True, False]
        await publisher.finish(channel)
        events = parsed(await whole(subscribe(channel)))
        assert [number for event, number in events if event == "page"] == [1, 3]

    async def test_keys_of_the_app_do_not_collide_with_internal_keys(
        self, publisher: Publisher
    ) -> None:
        channel = new_channel()
        for key in ("worker_ack", "end"):
            assert await publisher.publish(channel, "x", None, key=key)
        assert await publisher.ack(channel)
        assert await publisher.finish(channel)

    async def test_a_missing_worker_is_reported(self) -> None:
        (event,) = await whole(subscribe(new_channel(), ack_timeout=0.1))
        assert code(event) == "worker_timeout"
        assert event.id is None

    async def test_a_worker_that_publishes_without_an_ack_counts_as_present(
        self, publisher: Publisher
    ) -> None:
        channel = new_channel()
        reading = asyncio.ensure_future(whole(subscribe(channel, ack_timeout=0.4)))
        await publisher.publish(channel, "step", 1)
        await asyncio.sleep(0.6)
        await publisher.finish(channel)
        assert [event.event for event in await reading] == ["step", "complete"]

    @pytest.mark.parametrize("first", ["worker_ack", "step"])
    async def test_a_worker_is_present_though_the_reader_has_not_received_its_event(
        self, publisher: Publisher, first: str
    ) -> None:
        channel = new_channel()
        await publisher.publish(channel, first, None)
        reading = await reading_from_now(channel, ack_timeout=0.1)
        await asyncio.sleep(0.3)
        await publisher.finish(channel)
        assert parsed(await reading) == [("complete", {"reason": "finished"})]

    async def test_a_silent_worker_is_reported(self, publisher: Publisher) -> None:
        channel = new_channel()
        reading = asyncio.ensure_future(whole(subscribe(channel, idle_timeout=2.5)))
        await publisher.ack(channel)
        for number in range(4):
            await asyncio.sleep(0.4)
            await publisher.publish(channel, "step", number)
        events = await reading
        assert [event.event for event in events] == ["worker_ack", *["step"] * 4, "error"]
        assert code(events[-1]) == "idle_timeout"

    async def test_the_idle_timeout_begins_with_the_first_event(self, publisher: Publisher) -> None:
        channel = new_channel()
        reading = asyncio.ensure_future(whole(subscribe(channel, idle_timeout=0.1)))
        await asyncio.sleep(0.3)
        await publisher.ack(channel)
        events = await reading
        assert events[0].event == "worker_ack"
        assert code(events[1]) == "idle_timeout"
        (event,) = await whole(subscribe(new_channel(), ack_timeout=None, idle_timeout=0.1))
        assert code(event) == "idle_timeout"

    async def test_a_slow_client_does_not_count_as_a_silent_worker(
        self, publisher: Publisher
    ) -> None:
        channel = new_channel()
        await publisher.ack(channel)
        async with aclosing(subscribe(channel, idle_timeout=2.0)) as events:
            await anext(events)
            await asyncio.sleep(2.5)
            await publisher.publish(channel, "step", 1)
            assert (await anext(events)).event == "step"

    async def test_the_caller_names_the_events_that_end_a_channel(
        self, publisher: Publisher
    ) -> None:
        channel = new_channel()
        for event in ("complete", "error", "done", "late"):
            await publisher.publish(channel, event, None)
        events = await whole(subscribe(channel, terminal=("done",)))
        assert [event.event for event in events] == ["complete", "error", "done"]

    async def test_a_reader_selects_its_history(self, publisher: Publisher) -> None:
        channel = new_channel()
        for number in range(4):
            await publisher.publish(channel, "step", number)
        async with aclosing(subscribe(channel)) as events:
            seen = await take(events, 4)
        live = await reading_from_now(channel, ack_timeout=None)
        await publisher.publish(channel, "step", 4)
        await publisher.finish(channel)
        assert [event.event for event in await live] == ["step", "complete"]
        rest = await whole(subscribe(channel, history=seen[1].id))
        assert [event.json() for event in rest[:-1]] == [2, 3, 4]
        assert await whole(subscribe(channel, history=rest[-1].id)) == []
        assert len(await whole(subscribe(channel, history=None))) == 6

    @pytest.mark.parametrize(
        "history",
        ["x", "0-0", "0-0.0", "1-1.1", "9" * 14 + "-0.99", "-1-1.1", "1-1.1\n", "\0", "é" * 300],
    )
    async def test_an_invalid_position_is_reported(
        self, publisher: Publisher, history: str
    ) -> None:
        channel = new_channel()
        await publisher.publish(channel, "step", 0)
        await publisher.publish(channel, "step", 1)
        (event,) = await whole(subscribe(channel, history=history, ack_timeout=None))
        assert code(event) in ("gone", "truncated")

    async def test_a_position_of_another_channel_is_invalid(self, publisher: Publisher) -> None:
        one, other = new_channel(), new_channel()
        await publisher.publish(one, "step", 0)
        (event,) = await take(subscribe(one), 1)
        (gone,) = await whole(subscribe(other, history=event.id))
        assert code(gone) == "gone"

    async def test_a_slow_reader_receives_events_from_the_log(self, publisher: Publisher) -> None:
        channel = new_channel()
        await publisher.ack(channel)
        async with aclosing(subscribe(channel)) as slow:
            await anext(slow)
            for number in range(0, 900, 100):
                await asyncio.gather(
                    *(publisher.publish(channel, "n", number + more) for more in range(100))
                )
            await publisher.finish(channel)
            events = await whole(slow)
        assert [event.json() for event in events[:-1]] == list(range(900))

    async def test_a_slow_reader_is_notified_of_events_that_are_not_kept(self) -> None:
        channel = new_channel()
        async with Publisher(self.url, channel_max_events=10) as publisher:
            await publisher.ack(channel)
            async with aclosing(subscribe(channel)) as slow:
                await anext(slow)
                await asyncio.gather(*(publisher.publish(channel, "n", n) for n in range(100)))
                events = await whole(slow)
            assert code(events[-1]) == "truncated"
            assert [event.json() for event in events[:-1]] == list(range(len(events) - 1))
            kept = await take(subscribe(channel), 10)
            assert [event.json() for event in kept] == list(range(90, 100))

    async def test_a_channel_keeps_a_limited_number_of_bytes(self) -> None:
        channel = new_channel()
        async with Publisher(self.url, channel_max_bytes=4096) as publisher:
            for number in range(20):
                await publisher.publish(channel, "n", [number, "x" * 1000])
            await publisher.finish(channel)
            events = await whole(subscribe(channel))
        assert [event.json()[0] for event in events[:-1]] == [16, 17, 18, 19]

    async def test_a_key_is_forgotten_with_its_event_and_an_ack_never(self) -> None:
        channel = new_channel()
        async with Publisher(self.url, channel_max_events=5) as publisher:
            assert await publisher.ack(channel)
            assert await publisher.publish(channel, "n", 0, key="one")
            for number in range(5):
                await publisher.publish(channel, "n", number)
            assert await publisher.publish(channel, "n", 9, key="one")
            assert not await publisher.ack(channel)

    async def test_a_channel_expires(self) -> None:
        channel = new_channel()
        async with Publisher(self.url, channel_ttl=2) as publisher:
            await publisher.ack(channel)
            (event,) = await take(subscribe(channel), 1)
            await asyncio.sleep(2.5)
            (gone,) = await whole(subscribe(channel, history=event.id))
            assert code(gone) == "gone"
            assert await publisher.ack(channel)

    async def test_a_reader_is_notified_that_its_channel_has_expired_and_begun_again(self) -> None:
        channel = new_channel()
        async with Publisher(self.url, channel_ttl=2) as publisher:
            await asyncio.gather(*(publisher.publish(channel, "n", n) for n in range(3)))
            async with aclosing(subscribe(channel, ack_timeout=None)) as events:
                await take(events, 3)
                await asyncio.sleep(2.5)
                await asyncio.gather(*(publisher.publish(channel, "n", n) for n in range(5)))
                async with asyncio.timeout(HANG_SECONDS):
                    assert code(await anext(events)) == "truncated"

    async def test_a_reader_receives_no_events_of_another_channel(
        self, publisher: Publisher
    ) -> None:
        one, other = new_channel(), new_channel()
        await asyncio.gather(publisher.ack(one), publisher.ack(other))
        await publisher.publish(other, "secret", 1)
        await publisher.finish(one)
        assert [event.event for event in await whole(subscribe(one))] == ["worker_ack", "complete"]

    async def test_an_event_has_its_position_on_request(self, publisher: Publisher) -> None:
        channel = new_channel()
        await publisher.publish(channel, "step", {"é": "\u2028\n"})
        (plain,) = await take(subscribe(channel), 1)
        (enveloped,) = await take(subscribe(channel, envelope=True, ids=True), 1)
        assert plain == 'event: step\ndata: {"é":"\u2028\\n"}\n\n'.encode()
        assert (
            enveloped
            == (
                'data: {"event_type":"step","payload":{"é":"\u2028\\n"}}\n' + f"id: {plain.id}\n\n"
            ).encode()
        )

    @pytest.mark.parametrize("last", ["FinalAnswerStreamEnd", "complete", "error"])
    async def test_a_session_ends_with_its_answer(self, publisher: Publisher, last: str) -> None:
        session = new_channel()
        for event in ("worker_ack", "FinalAnswerStream", last, "late"):
            await publisher.publish(session, event, {})
        events = await whole(sse_event_streamer(session))
        assert [event.event for event in events] == ["worker_ack", "FinalAnswerStream", last]
        *_, late = await whole(sse_event_streamer(session, terminal=("late",)))
        assert late.event == "late"

    async def test_the_short_forms_use_sessions(self) -> None:
        session = new_channel()
        assert await publish_event(session, "worker_ack", {})
        assert await publish_event(session, "error", {"error": "no"}, key="only")
        assert [bytes(event) async for event in sse_event_streamer(session)] == [
            b'data: {"event_type":"worker_ack","payload":{}}\n\n',
            b'data: {"event_type":"error","payload":{"error":"no"}}\n\n',
        ]

    async def test_invalid_data_are_refused_before_they_are_sent(
        self, publisher: Publisher
    ) -> None:
        channel = new_channel()
        for data in (object(), float("nan"), "\ud800", {1: {2, 3}}):
            with pytest.raises(EventFormatError, match="data is"):
                await publisher.publish(channel, "step", data)
        async with Publisher(self.url, max_event_bytes=1024) as small:
            with pytest.raises(EventFormatError, match="1025 bytes of JSON") as refused:
                await small.publish(channel, "step", "s3cret" + 1017 * "x")
            assert "s3cret" not in str(refused.value)
            await small.publish(channel, "step", 1022 * "x")
        await publisher.finish(channel)
        assert len(await whole(subscribe(channel))) == 2

    async def test_readers_that_are_cancelled_leave_nothing(self, publisher: Publisher) -> None:
        channel = new_channel()
        await publisher.ack(channel)
        for _, task in itertools.product(range(3), range(4)):
            reading = asyncio.ensure_future(whole(subscribe(channel)))
            await asyncio.sleep(0.001 * task)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        reading = asyncio.ensure_future(whole(subscribe(channel)))
        await asyncio.sleep(0.02)
        await publisher.finish(channel)
        assert [event.event for event in await reading] == ["worker_ack", "complete"]
