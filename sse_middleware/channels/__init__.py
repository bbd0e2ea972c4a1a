"""Channels: events from a background worker to a browser.

    await Publisher().publish(session_id, "progress", {"percent": 40})     # any process
    return EventSourceResponse(subscribe(session_id))                      # the web process

A channel is a log with a name, many writers and many readers, and one order for all. Anyone with
the name can read the channel, so use a name that cannot be guessed.
"""

from collections.abc import AsyncGenerator, Collection
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, Self, Unpack

from sse_middleware._once import Once, OncePerLoop
from sse_middleware.channels.base import Channels
from sse_middleware.channels.events import (
    ANSWER_END,
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
from sse_middleware.channels.settings import (
    ChannelSettings,
    channel_settings,
    open_blocking,
    open_channels,
)
from sse_middleware.channels.subscriber import FROM_BEGINNING, ChannelReader, ReadOptions
from sse_middleware.config.arguments import OptionArguments
from sse_middleware.errors import ConfigurationError
from sse_middleware.stores.installed import RedisAddress

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
_IDLE_SECONDS: Final = 300.0
"""Longer than tools and models are silent. It is also the time after which Kafka takes a silent
consumer for dead (its `max.poll.interval.ms`)."""

IdleTimeout = float | Literal["auto"] | None
"""The longest time in seconds without an event; `None` for no limit."""
Compat = Literal["sse_session"]
"""Plain messages of Redis that are read too."""


class Publisher:
    """Publish events on channels, from asyncio.

    An event is sent at once. Events that are published while one is in flight are sent together,
    in order. A cancelled call may or may not have published its event.

    Args:
        url: of Redis; `""` for the memory of this process. The default is `SSE_REDIS_URL`, then the
            Redis of the `SSEMiddleware` of this process, then the memory.
        **options: fields of `Options`; each overrides its `SSE_*` variable.

    Raises:
        ConfigurationError: an option or a variable is not allowed.
        TypeError: there is no such option.
    """

    def __init__(self, url: str | None = None, **options: Unpack[OptionArguments]) -> None:
        self._settings = channel_settings(url, options)
        self._channels = OncePerLoop(partial(open_channels, self._settings))

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
        url: of Redis; `""` for the memory of this process. The default is `SSE_REDIS_URL`, then the
            Redis of the `SSEMiddleware` of this process, then the memory.
        **options: fields of `Options`; each overrides its `SSE_*` variable.

    Raises:
        ConfigurationError: an option or a variable is not allowed.
        TypeError: there is no such option.
    """

    def __init__(self, url: str | None = None, **options: Unpack[OptionArguments]) -> None:
        self._settings = channel_settings(url, options)
        self._channels = Once(partial(open_blocking, self._settings))

    def publish(self, channel: str, event: str, data: Any, *, key: str | None = None) -> bool:
        """Publish an event as `Publisher.publish` does, and return when the channel contains it."""
        outgoing = outgoing_event(channel, event, data, key, self._settings.max_event_bytes)
        return self._channels().publish(outgoing)

    def ack(self, channel: str) -> bool:
        """Take the job of a channel; return `False` if another worker has taken it."""
        return self._channels().publish(ack_event(channel))

    def finish(self, channel: str, data: Any = _FINISHED) -> bool:
        """Publish `complete`, the last event; return `False` if the channel has ended before."""
        return self._channels().publish(finish_event(channel, data, self._settings.max_event_bytes))

    def fail(self, channel: str, code: str, message: str) -> bool:
        """Publish `error`, the last event; return `False` if the channel has ended before."""
        outgoing = fail_event(channel, code, message, self._settings.max_event_bytes)
        return self._channels().publish(outgoing)

    def close(self) -> None:
        """Close the connections."""
        channels = self._channels.take()
        if channels is not None:
            channels.close()

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
    idle_timeout: IdleTimeout = "auto",
    terminal: Collection[str] = (COMPLETE, ERROR),
    history: str | None = FROM_BEGINNING,
    envelope: bool = False,
    ids: bool = False,
    compat: Compat | None = None,
    url: str | None = None,
) -> AsyncGenerator[ChannelEvent, None]:
    """Read a channel: an async iterator that the responses of all frameworks accept.

    It ends after a terminal event. If it cannot continue, it ends with an `error` event of its own:
    `worker_timeout`, `idle_timeout`, `truncated` (the next event is no longer kept), `gone`
    (`history` is not a position in the channel) or `store_unavailable`.

    Args:
        channel: the channel's name. Anyone with the name can read the channel.
        ack_timeout: the time in seconds within which the channel must have an event, `worker_ack`
            or any other; `None` for no limit.
        idle_timeout: the longest time in seconds without an event after that; `None` for no limit.
            `auto` is 300 s, and no limit if `ack_timeout` is `None`: no worker is expected then.
        terminal: the names of the events that end the iterator.
        history: `beginning` for all events that are kept; `now` for later events; the id of an
            event for those after it. `None` is the beginning, so that a missing `Last-Event-ID`
            can be passed.
        envelope: whether `data: {"event_type", "payload"}` replaces the `event:` line.
        ids: whether each event has an `id:` line. The app then owns its ids: the middleware adds
            none and keeps no events, and passes the `Last-Event-ID` of a client that reconnects to
            the app.
        compat: `sse_session` to receive also `{"event_type", "payload"}`, as JSON, from a `PUBLISH`
            to `sse_session:` and the channel's name. Redis does not keep such messages: those that
            were published before the iterator has subscribed are lost.
        url: of Redis; `""` for the memory of this process. The default is `SSE_REDIS_URL`, then the
            Redis of the `SSEMiddleware` of this process, then the memory.

    Raises:
        ConfigurationError: an argument or a variable is not allowed.
        EventFormatError: the channel's name is not allowed.
    """
    check_channel(channel)
    idle = _idle_seconds(idle_timeout, ack_timeout)
    for name, value in (("ack_timeout", ack_timeout), ("idle_timeout", idle)):
        if value is not None and not value > 0:
            raise ConfigurationError(name, value, "seconds above 0, or None")
    if isinstance(terminal, str):
        raise ConfigurationError("terminal", terminal, "a collection of names")
    settings = channel_settings(url, {})
    address = settings.address()
    _check_compat(compat, address)
    options = ReadOptions(
        ack_timeout=ack_timeout,
        idle_timeout=idle,
        terminal=frozenset(terminal),
        history=history or FROM_BEGINNING,
        format=EventFormat(envelope=envelope, ids=ids),
        with_messages=compat is not None,
    )
    return ChannelReader(partial(_shared_channels, settings, address), channel, options).events()


async def publish_event(
    session_id: str, event_type: str, payload: Any, *, key: str | None = None
) -> bool:
    """Publish an event on the channel of a session, as `Publisher().publish` does."""
    return await _publisher().publish(session_id, event_type, payload, key=key)


def sse_event_streamer(
    session_id: str,
    *,
    ack_timeout: float | None = _ACK_SECONDS,
    idle_timeout: IdleTimeout = "auto",
    terminal: Collection[str] = (ANSWER_END, COMPLETE, ERROR),
    history: str | None = FROM_BEGINNING,
    ids: bool = False,
    compat: Compat | None = None,
    url: str | None = None,
) -> AsyncGenerator[ChannelEvent, None]:
    """Read the channel of an agent's session, as `subscribe` does.

    Each event has the form `data: {"event_type", "payload"}`. The iterator ends after
    `FinalAnswerStreamEnd`, `complete` or `error`.

    Args:
        session_id: the channel's name. Anyone with the name can read the channel.
        ack_timeout: as for `subscribe`, and so are all that follow.
        idle_timeout: the longest time without an event.
        terminal: the names of the events that end the iterator.
        history: the first event.
        ids: whether each event has an `id:` line.
        compat: whether plain messages of Redis are received too.
        url: of Redis.

    Raises:
        ConfigurationError: an argument or a variable is not allowed.
        EventFormatError: the channel's name is not allowed.
    """
    return subscribe(
        session_id,
        ack_timeout=ack_timeout,
        idle_timeout=idle_timeout,
        terminal=terminal,
        history=history,
        envelope=True,
        ids=ids,
        compat=compat,
        url=url,
    )


async def close_channels() -> None:
    """Close the connections that readers and `publish_event` share in this event loop."""
    publisher, opened = _publisher.take(), _opened.take() or {}
    if publisher is not None:
        await publisher.close()
    for channels in opened.values():
        await channels.close()


_publisher = OncePerLoop(Publisher)
_opened = OncePerLoop[dict[RedisAddress, Channels]](dict)


def _shared_channels(settings: ChannelSettings, address: RedisAddress) -> Channels:
    opened = _opened()
    if address not in opened:
        opened[address] = open_channels(settings, address)
    return opened[address]


def _idle_seconds(idle_timeout: IdleTimeout, ack_timeout: float | None) -> float | None:
    if idle_timeout == "auto":
        return None if ack_timeout is None else _IDLE_SECONDS
    if isinstance(idle_timeout, str):
        raise ConfigurationError("idle_timeout", idle_timeout, "seconds above 0, auto, or None")
    return idle_timeout


def _check_compat(compat: str | None, address: RedisAddress) -> None:
    if compat not in (None, "sse_session"):
        raise ConfigurationError("compat", compat, "sse_session, or None")
    if compat is not None and not address.url:
        allowed = "None without Redis; set SSE_REDIS_URL to the Redis of the workers"
        raise ConfigurationError("compat", compat, allowed)
