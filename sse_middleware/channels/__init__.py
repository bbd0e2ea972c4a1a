"""Channels: from a background worker to the browser that waits for it.

    await Publisher().publish(session_id, "progress", {"percent": 40})     # any process
    return EventSourceResponse(subscribe(session_id))                      # the web process

A channel is a log with a name, many writers and many readers, and one order for all. Who knows its
name may read it: take one that cannot be guessed.
"""

import os
from collections.abc import AsyncGenerator, Collection
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, Unpack

from prometheus_client import REGISTRY

from sse_middleware._once import OncePerLoop, OncePerProcess
from sse_middleware.channels.base import BlockingChannels, Channels, Limits
from sse_middleware.channels.events import (
    COMPLETE,
    ERROR,
    ChannelEvent,
    EventFormat,
    ack_of,
    check_channel,
    fail_of,
    finish_of,
    post_of,
)
from sse_middleware.channels.memory import (
    BlockingMemoryChannels,
    ChannelMemory,
    MemoryChannels,
)
from sse_middleware.channels.subscriber import FROM_BEGINNING, ChannelReader, Manner
from sse_middleware.config.arguments import OptionArguments
from sse_middleware.config.options import Options
from sse_middleware.errors import ConfigurationError
from sse_middleware.observability.metrics import counting_in

__all__ = [
    "BlockingPublisher",
    "ChannelEvent",
    "Publisher",
    "close_channels",
    "publish_event",
    "sse_event_streamer",
    "subscribe",
]

_FINISHED: Final = {"reason": "finished"}
_ACK_SECONDS: Final = 10.0


class _Settings(NamedTuple):
    """What of the settings channels need."""

    url: str
    prefix: str
    limits: Limits
    max_event_bytes: int


class Publisher:
    """Publish events on channels, from asyncio.

    An event is sent at once, and what is published while one is on its way leaves together, in
    order. A cancelled call may have published its event, or not.

    Args:
        url: the Redis of the channels; without, `SSE_REDIS_URL`, and where that is empty too, the
            memory of this process.
        **options: fields of `Options`; each goes before its `SSE_*` variable.

    Raises:
        ConfigurationError: an option or a variable is not allowed.
        TypeError: there is no such option.
    """

    def __init__(self, url: str | None = None, **options: Unpack[OptionArguments]) -> None:
        self._settings = _settings(url, options)
        self._channels = OncePerLoop(partial(_open, self._settings))

    async def publish(self, channel: str, event: str, data: Any, *, key: str | None = None) -> bool:
        """Publish an event, and return when it stands in the channel.

        Args:
            channel: where: 1 to 200 visible ASCII characters.
            event: its name.
            data: its payload: whatever JSON can encode.
            key: publishes it once, however often it is called, as long as the event is kept.

        Returns:
            Whether it stands there by this call; `False` where the key is taken.

        Raises:
            EventFormatError: an argument is not allowed.
            StoreError: Redis has refused, or was out of reach for ten seconds of trying.
        """
        post = post_of(channel, event, data, key, self._settings.max_event_bytes)
        return await self._channels().publish(post)

    async def ack(self, channel: str) -> bool:
        """Say that a worker is at it; `False` where another one has said so: leave it the job."""
        return await self._channels().publish(ack_of(channel))

    async def finish(self, channel: str, data: Any = _FINISHED) -> bool:
        """Publish `complete`, the last event; `False` where the channel has ended before."""
        post = finish_of(channel, data, self._settings.max_event_bytes)
        return await self._channels().publish(post)

    async def fail(self, channel: str, code: str, message: str) -> bool:
        """Publish `error`, the last event; `False` where the channel has ended before.

        Args:
            channel: which one.
            code: why, for programs.
            message: why, for people: it goes to the browser.
        """
        post = fail_of(channel, code, message, self._settings.max_event_bytes)
        return await self._channels().publish(post)

    async def close(self) -> None:
        """Send what is to be sent, and let go of this event loop's connections."""
        channels = self._channels.take()
        if channels is not None:
            await channels.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()


class BlockingPublisher:
    """Publish events on channels, from threads and from processes that were forked.

    One object serves all threads of a process, and what they publish at the same time leaves
    together. A worker that forks (Celery, RQ) may make it before, and use it in its children.

    Args:
        url: the Redis of the channels; without, `SSE_REDIS_URL`, and where that is empty too, the
            memory of this process.
        **options: fields of `Options`; each goes before its `SSE_*` variable.

    Raises:
        ConfigurationError: an option or a variable is not allowed.
        TypeError: there is no such option.
    """

    def __init__(self, url: str | None = None, **options: Unpack[OptionArguments]) -> None:
        self._settings = _settings(url, options)
        self._channels = _open_blocking(self._settings)

    def publish(self, channel: str, event: str, data: Any, *, key: str | None = None) -> bool:
        """Publish an event, and return when it stands in the channel; as `Publisher.publish`."""
        post = post_of(channel, event, data, key, self._settings.max_event_bytes)
        return self._channels.publish(post)

    def ack(self, channel: str) -> bool:
        """Say that a worker is at it; `False` where another one has said so: leave it the job."""
        return self._channels.publish(ack_of(channel))

    def finish(self, channel: str, data: Any = _FINISHED) -> bool:
        """Publish `complete`, the last event; `False` where the channel has ended before."""
        return self._channels.publish(finish_of(channel, data, self._settings.max_event_bytes))

    def fail(self, channel: str, code: str, message: str) -> bool:
        """Publish `error`, the last event; `False` where the channel has ended before."""
        post = fail_of(channel, code, message, self._settings.max_event_bytes)
        return self._channels.publish(post)

    def close(self) -> None:
        """Let go of the connections."""
        self._channels.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


def subscribe(
    channel: str,
    *,
    ack_timeout: float | None = _ACK_SECONDS,
    idle_timeout: float | None = None,
    terminal: Collection[str] = (COMPLETE, ERROR),
    history: str | None = FROM_BEGINNING,
    envelope: bool = False,
    ids: bool = False,
    url: str | None = None,
) -> AsyncGenerator[ChannelEvent, None]:
    """Read a channel: an async iterator that the responses of all frameworks take as it is.

    It ends behind a terminal event. Where there can be no more, an `error` of its own is the last:
    `worker_timeout`, `idle_timeout`, `truncated` (what comes next is not kept any more), `gone`
    (`history` is no place in the channel) or `store_unavailable`.

    Args:
        channel: its name, which is all that a reader needs: one that nobody can guess.
        ack_timeout: within how many seconds there has to be a `worker_ack`; `None`: there need not.
        idle_timeout: how many seconds there may be without an event from then on; `None`: any
            number.
        terminal: the names of the events behind which there is nothing.
        history: `beginning`: all that is kept; `now`: what comes; or the id of an event: what
            stands behind it. `None` is the beginning, so that a `Last-Event-ID` can stand here.
        envelope: write `data: {"event_type", "payload"}` in place of an `event:` line.
        ids: write the id of each event. An app that does owns its ids: the middleware then adds
            none and keeps nothing, and hands the app the `Last-Event-ID` of who comes back.
        url: the Redis of the channels; without, that of `SSE_REDIS_URL`, or memory.

    Raises:
        ConfigurationError: an argument or a variable is not allowed.
        EventFormatError: the channel's name is not.
    """
    check_channel(channel)
    for name, value in (("ack_timeout", ack_timeout), ("idle_timeout", idle_timeout)):
        if value is not None and not value > 0:
            raise ConfigurationError(name, value, "seconds above 0, or None")
    if isinstance(terminal, str):
        raise ConfigurationError("terminal", terminal, "a collection of names")
    manner = Manner(
        ack_timeout=ack_timeout,
        idle_timeout=idle_timeout,
        terminal=frozenset(terminal),
        history=history or FROM_BEGINNING,
        form=EventFormat(envelope=envelope, ids=ids),
    )
    settings = _settings(url, {})
    return ChannelReader(partial(_for_readers, settings), channel, manner).events()


async def publish_event(
    session_id: str, event_type: str, payload: Any, *, key: str | None = None
) -> bool:
    """Publish an event on the channel of a session, as `Publisher().publish` does."""
    return await _publisher().publish(session_id, event_type, payload, key=key)


def sse_event_streamer(
    session_id: str, *, terminal: Collection[str] = (COMPLETE, ERROR), **how: Any
) -> AsyncGenerator[ChannelEvent, None]:
    """Read the channel of a session, each event as `data: {"event_type", "payload"}`.

    Args:
        session_id: the channel.
        terminal: the names of the events behind which there is nothing.
        **how: the other arguments of `subscribe`.
    """
    return subscribe(session_id, **{"envelope": True, "terminal": terminal, **how})


async def close_channels() -> None:
    """Let go of what readers and `publish_event` share in this event loop; at its end, if ever."""
    publisher, shared = _publisher.take(), _shared.take() or {}
    if publisher is not None:
        await publisher.close()
    for channels in shared.values():
        await channels.close()


_memory = OncePerProcess(
    lambda: ChannelMemory(max_total_bytes=Options.from_environ(os.environ).memory_max_bytes)
)
_publisher = OncePerLoop(Publisher)
_shared = OncePerLoop[dict[tuple[str, str], Channels]](dict)


def _for_readers(settings: _Settings) -> Channels:
    shared, address = _shared(), (settings.url, settings.prefix)
    if address not in shared:
        shared[address] = _open(settings)
    return shared[address]


def _settings(url: str | None, options: OptionArguments) -> _Settings:
    if url is not None:
        options = {**options, "redis_url": url}
    chosen = Options.from_environ(os.environ, **options)
    if chosen.redis_url:
        _redis()  # where it is missing, that is told here and now
    limits = Limits(
        max_events=chosen.channel_max_events,
        max_bytes=chosen.channel_max_bytes,
        ttl=chosen.channel_ttl,
    )
    return _Settings(chosen.redis_url, chosen.redis_prefix, limits, chosen.max_event_bytes)


def _open(settings: _Settings) -> Channels:
    url, prefix, limits, _ = settings
    if not url:
        return MemoryChannels(_memory(), limits)
    observers = counting_in(REGISTRY)
    redis: Channels = _redis().RedisChannels(url, prefix=prefix, limits=limits, observers=observers)
    return redis


def _open_blocking(settings: _Settings) -> BlockingChannels:
    url, prefix, limits, _ = settings
    if not url:
        return BlockingMemoryChannels(_memory, limits)
    observers, of_redis = counting_in(REGISTRY), _redis().BlockingRedisChannels
    redis: BlockingChannels = of_redis(url, prefix=prefix, limits=limits, observers=observers)
    return redis


def _redis() -> Any:
    try:
        from sse_middleware.channels import redis as channel_redis  # noqa: PLC0415 - an extra
    except ImportError as exc:
        allowed = "nothing, or with pip install 'sse-middleware[redis]' what is there"
        raise ConfigurationError("SSE_REDIS_URL", "a URL", allowed) from exc
    return channel_redis
