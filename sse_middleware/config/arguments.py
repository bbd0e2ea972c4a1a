"""The settings as keyword arguments, for type checkers and editors.

A type checker cannot read the table of settings, so names and types are repeated here; a test
compares the two.
"""

from typing import TypeAlias, TypedDict

from sse_middleware.config.endpoint_options import CapAction, CommentStyle
from sse_middleware.config.options import LimitAction

Strings: TypeAlias = str | list[str] | tuple[str, ...]
"""Several strings: a list, or one string in which commas separate them."""


class EndpointArguments(TypedDict, total=False):
    """The options that a mark may override."""

    enabled: bool
    stream_max_seconds: float | None
    cap_action: CapAction
    heartbeat_interval: float | None
    silence_threshold: float | None
    chunk_delay_ms: int
    batch: bool
    retry_ms: int
    send_timeout: float | None
    drain_seconds: float
    linger_seconds: float
    keep: bool
    max_event_bytes: int
    event_prefix: str
    comment_style: CommentStyle
    trace_in_data: bool


class OptionArguments(EndpointArguments, total=False):
    """All options."""

    max_lingering: int
    max_readers: int
    replay_max_events: int
    replay_max_bytes: int
    replay_ttl: float
    memory_max_bytes: int
    redis_url: str
    redis_prefix: str
    channel_ttl: float
    channel_max_events: int
    channel_max_bytes: int
    identity_cookies: Strings
    secret: str
    max_streams: int | None
    max_streams_per_client: int | None
    limit_action: LimitAction
    open_rate: str
    trusted_proxies: Strings
    mark: Strings
    compression: Strings
    include: Strings
    exclude: Strings
    only_marked: bool
    ready_path: str
    drain_path: str
    metrics_path: str
    admin_path: str
    admin_token: str
    admin_payloads: bool
    client_path: str
    rollout_percent: int
    rollout_users: Strings
    usage_cost: bool
