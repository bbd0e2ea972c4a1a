"""The settings of channels, and the storage that they select: a Redis, or the memory.

Publishers may be created when a module is imported, before the middleware is. So the address is
determined when a publisher or a reader opens the storage.
"""

import os
from importlib import import_module
from typing import Any, NamedTuple

from prometheus_client import REGISTRY

from sse_middleware._once import OncePerProcess
from sse_middleware.channels.base import BlockingChannels, Channels, Limits
from sse_middleware.channels.memory import BlockingMemoryChannels, ChannelMemory, MemoryChannels
from sse_middleware.config.arguments import OptionArguments
from sse_middleware.config.options import Options
from sse_middleware.errors import ConfigurationError
from sse_middleware.observability.metrics import counting_in
from sse_middleware.stores.installed import RedisAddress, installed_redis


class ChannelSettings(NamedTuple):
    """The settings of a publisher or a reader.

    Attributes:
        url: of Redis, `""` for the memory, `None` if it is not set.
        prefix: of all Redis keys.
        has_prefix: whether the prefix is set.
        limits: how much of a channel is kept.
        max_event_bytes: the most bytes of the data of an event.
    """

    url: str | None
    prefix: str
    has_prefix: bool
    limits: Limits
    max_event_bytes: int

    def address(self) -> RedisAddress:
        """Return the place in Redis; its URL is `""` for the memory of this process."""
        if self.url is not None:
            return RedisAddress(self.url, self.prefix)
        installed = installed_redis() or RedisAddress("", self.prefix)
        return installed._replace(prefix=self.prefix) if self.has_prefix else installed


def channel_settings(url: str | None, options: OptionArguments) -> ChannelSettings:
    """Return settings from a URL, from options and from variables.

    Raises:
        ConfigurationError: a value is not allowed, or the extra `redis` is not installed.
        TypeError: there is no such option.
    """
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
    is_set = bool(chosen.redis_url) or "redis_url" in options
    return ChannelSettings(
        chosen.redis_url if is_set else None,
        chosen.redis_prefix,
        "redis_prefix" in chosen.explicit,
        limits,
        chosen.max_event_bytes,
    )


def open_channels(settings: ChannelSettings, address: RedisAddress | None = None) -> Channels:
    """Open the storage of channels for the running event loop."""
    url, prefix = address or settings.address()
    if not url:
        return MemoryChannels(MEMORY(), settings.limits, is_default=settings.url is None)
    options = {"prefix": prefix, "limits": settings.limits, "observers": counting_in(REGISTRY)}
    channels: Channels = _redis_module("redis").RedisChannels(url, **options)
    return channels


def open_blocking(settings: ChannelSettings) -> BlockingChannels:
    """Open the storage of channels for threads."""
    url, prefix = settings.address()
    if not url:
        return BlockingMemoryChannels(MEMORY, settings.limits, is_default=settings.url is None)
    options = {"prefix": prefix, "limits": settings.limits, "observers": counting_in(REGISTRY)}
    redis = _redis_module("blocking_redis")
    channels: BlockingChannels = redis.BlockingRedisChannels(url, **options)
    return channels


MEMORY = OncePerProcess(
    lambda: ChannelMemory(max_total_bytes=Options.from_environ(os.environ).memory_max_bytes)
)
"""The channels in the memory of this process."""


def _redis_module(name: str) -> Any:
    """Return a module of this package that needs the extra `redis`."""
    try:
        return import_module(f"{__package__}.{name}")
    except ImportError as exc:
        allowed = "nothing, or with pip install 'sse-middleware[redis]' what is there"
        raise ConfigurationError("SSE_REDIS_URL", "a URL", allowed) from exc
