"""Channels: events from a background worker to a browser.

    await Publisher().publish(session_id, "progress", {"percent": 40})     # any process
    return EventSourceResponse(subscribe(session_id))                      # the web process

A channel is a log with a name, many writers and many readers, and one order for all. Anyone with
the name can read the channel, so use a name that cannot be guessed.
"""

import os
from collections.abc import AsyncGenerator, Collection
from functools import partial
from importlib import import_module
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
    ack_event,
    check_channel,
    fail_event,
    finish_event,
    outgoing_event,
)
from sse_middleware.channels.memory import (
    BlockingMemoryChannels,
    ChannelMemory,
    MemoryChannels,
)
from sse_middleware.channels.subscriber import FROM_BEGINNING, ChannelReader, ReadOptions
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
    """The settings of channels."""

    url: str
    prefix: str
    limits: Limits
    max_event_bytes: int


class Publisher:
    """Publish events on channels, from asyncio.

    An event is sent at once. Events that are published while one is in flight are sent together,
    in order. A cancelled call may or may not have published its event.

    Args:
        url: of Redis. The default is `SSE_REDIS_URL`; if that is empty, the memory of this process
            is used.
        **options: fields of `Options`; each overrides its `SSE_*` variable.

    Raises:
        ConfigurationError: an option or a variable is not allowed.
        TypeError: there is no such option.
    """

    def __init__(self, url: str | None = None, **options: Unpack[OptionArguments]) -> None:
        self._settings = _settings(url, options)
        self._channels = OncePerLoop(partial(_open, self._settings))

    async def publish(self, channel: str, event: str, data: Any, *, key: str | None = None) -> bool:
        """Publish an event, and return when the channel contains it.

        Args:
            channel: the channel's name: 1 to 200 visible ASCII characters.
            event: the event's name.
            data: the payload: any value that JSON can encode.
            key: the channel contains one event with this key at most, while the event is kept.

        Returns:
            Whether this call has published the event; `False` if the key is in use.

        Raises:
            EventFormatError: an argument is not allowed.
            StoreError: Redis has refused the event, or was out of reach for ten seconds.
        """
        outgoing = outgoing_event(channel, event, data, key, self._settings.max_event_bytes)
        return await self._channels().publish(outgoing)

    async def ack(self, channel: str) -> bool:
        """Take the job of a channel; return `False` if another worker has taken it."""
        return await self._channels().publish(ack_event(channel))

    async def finish(self, channel: str, data: Any = _FINISHED) -> bool:
        """Publish `complete`, the last event; return `False` if the channel has ended before."""
        outgoing = finish_event(channel, data, self._settings.max_event_bytes)
        return await self._channels().publish(outgoing)

    async def fail(self, channel: str, code: str, message: str) -> bool:
        """Publish `error`, the last event; return `False` if the channel has ended before.

        Args:
            channel: the channel's name.
            code: the reason, for programs.
            message: the reason, for people; the browser receives it.
        """
        outgoing = fail_event(channel, code, message, self._settings.max_event_bytes)
        return await self._channels().publish(outgoing)

    async def close(self) -> None:
        """Send all events, and close the connections of this event loop."""
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

    One object serves all threads of a process, and each call has a connection of its own while it
    lasts. A worker that forks (Celery, RQ) may create it before the fork and use it in its
    children. An exception that a job runner raises in a call affects no other call.

    Args:
        url: of Redis. The default is `SSE_REDIS_URL`; if that is empty, the memory of this process
            is used.
        **options: fields of `Options`; each overrides its `SSE_*` variable.

    Raises:
        ConfigurationError: an option or a variable is not allowed.
        TypeError: there is no such option.
    """

    def __init__(self, url: str | None = None, **options: Unpack[OptionArguments]) -> None:
        self._settings = _settings(url, options)
        self._channels = _open_blocking(self._settings)

    def publish(self, channel: str, event: str, data: Any, *, key: str | None = None) -> bool:
        """Publish an event as `Publisher.publish` does, and return when the channel contains it."""
        outgoing = outgoing_event(channel, event, data, key, self._settings.max_event_bytes)
        return self._channels.publish(outgoing)

    def ack(self, channel: str) -> bool:
        """Take the job of a channel; return `False` if another worker has taken it."""
        return self._channels.publish(ack_event(channel))

    def finish(self, channel: str, data: Any = _FINISHED) -> bool:
        """Publish `complete`, the last event; return `False` if the channel has ended before."""
        return self._channels.publish(finish_event(channel, data, self._settings.max_event_bytes))

    def fail(self, channel: str, code: str, message: str) -> bool:
        """Publish `error`, the last event; return `False` if the channel has ended before."""
        outgoing = fail_event(channel, code, message, self._settings.max_event_bytes)
        return self._channels.publish(outgoing)

    def close(self) -> None:
        """Close the connections."""
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
    """Read a channel: an async iterator that the responses of all frameworks accept.

    It ends after a terminal event. If it cannot continue, it ends with an `error` event of its own:
    `worker_timeout`, `idle_timeout`, `truncated` (the next event is no longer kept), `gone`
    (`history` is not a position in the channel) or `store_unavailable`.

    Args:
        channel: the channel's name. Anyone with the name can read the channel.
        ack_timeout: the time in seconds within which there must be a `worker_ack` event; `None` for
            no limit.
        idle_timeout: the longest time in seconds without an event after that; `None` for no limit.
        terminal: the names of the events that end the iterator.
        history: `beginning` for all events that are kept; `now` for later events; the id of an
            event for those after it. `None` is the beginning, so that a missing `Last-Event-ID`
            can be passed.
        envelope: whether `data: {"event_type", "payload"}` replaces the `event:` line.
        ids: whether each event has an `id:` line. The app then owns its ids: the middleware adds
            none and keeps no events, and passes the `Last-Event-ID` of a client that reconnects to
            the app.
        url: of Redis. The default is `SSE_REDIS_URL`; if that is empty, the memory of this process
            is used.

    Raises:
        ConfigurationError: an argument or a variable is not allowed.
        EventFormatError: the channel's name is not allowed.
    """
    check_channel(channel)
    for name, value in (("ack_timeout", ack_timeout), ("idle_timeout", idle_timeout)):
        if value is not None and not value > 0:
            raise ConfigurationError(name, value, "seconds above 0, or None")
    if isinstance(terminal, str):
        raise ConfigurationError("terminal", terminal, "a collection of names")
    options = ReadOptions(
        ack_timeout=ack_timeout,
        idle_timeout=idle_timeout,
        terminal=frozenset(terminal),
        history=history or FROM_BEGINNING,
        format=EventFormat(envelope=envelope, ids=ids),
    )
    settings = _settings(url, {})
    return ChannelReader(partial(_shared_channels, settings), channel, options).events()


async def publish_event(
    session_id: str, event_type: str, payload: Any, *, key: str | None = None
) -> bool:
    """Publish an event on the channel of a session, as `Publisher().publish` does."""
    return await _publisher().publish(session_id, event_type, payload, key=key)


def sse_event_streamer(
    session_id: str, *, terminal: Collection[str] = (COMPLETE, ERROR), **how: Any
) -> AsyncGenerator[ChannelEvent, None]:
    """Read the channel of a session; each event has the form `data: {"event_type", "payload"}`.

    Args:
        session_id: the channel.
        terminal: the names of the events that end the iterator.
        **how: the other arguments of `subscribe`.
    """
    return subscribe(session_id, **{"envelope": True, "terminal": terminal, **how})


async def close_channels() -> None:
    """Close the connections that readers and `publish_event` share in this event loop."""
    publisher, opened = _publisher.take(), _opened.take() or {}
    if publisher is not None:
        await publisher.close()
    for channels in opened.values():
        await channels.close()


_memory = OncePerProcess(
    lambda: ChannelMemory(max_total_bytes=Options.from_environ(os.environ).memory_max_bytes)
)
_publisher = OncePerLoop(Publisher)
_opened = OncePerLoop[dict[tuple[str, str], Channels]](dict)


def _shared_channels(settings: _Settings) -> Channels:
    opened, address = _opened(), (settings.url, settings.prefix)
    if address not in opened:
        opened[address] = _open(settings)
    return opened[address]


def _settings(url: str | None, options: OptionArguments) -> _Settings:
    if url is not None:
        options = {**options, "redis_url": url}
    chosen = Options.from_environ(os.environ, **options)
    if chosen.redis_url:
        _redis_module("redis")  # raises now if the extra is not installed
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
    options = {"prefix": prefix, "limits": limits, "observers": counting_in(REGISTRY)}
    channels: Channels = _redis_module("redis").RedisChannels(url, **options)
    return channels


def _open_blocking(settings: _Settings) -> BlockingChannels:
    url, prefix, limits, _ = settings
    if not url:
        return BlockingMemoryChannels(_memory, limits)
    options = {"prefix": prefix, "limits": limits, "observers": counting_in(REGISTRY)}
    redis = _redis_module("blocking_redis")
    channels: BlockingChannels = redis.BlockingRedisChannels(url, **options)
    return channels


def _redis_module(name: str) -> Any:
    """Return a module of this package that needs the extra `redis`."""
    try:
        return import_module(f"{__name__}.{name}")
    except ImportError as exc:
        allowed = "nothing, or with pip install 'sse-middleware[redis]' what is there"
        raise ConfigurationError("SSE_REDIS_URL", "a URL", allowed) from exc
