"""The settings in the order in which the documentation lists them."""

from collections.abc import Mapping
from typing import Final

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "Which streams": (
        "enabled",
        "mark",
        "include",
        "exclude",
        "only_marked",
        "rollout_percent",
        "rollout_users",
    ),
    "Heartbeats and events": (
        "heartbeat_interval",
        "silence_threshold",
        "comment_style",
        "event_prefix",
        "trace_in_data",
        "retry_ms",
        "batch",
        "chunk_delay_ms",
        "max_event_bytes",
        "send_timeout",
        "compression",
    ),
    "The end of a stream": (
        "stream_max_seconds",
        "cap_action",
        "drain_seconds",
    ),
    "Resuming": (
        "keep",
        "linger_seconds",
        "max_lingering",
        "max_readers",
        "replay_max_events",
        "replay_max_bytes",
        "replay_ttl",
        "memory_max_bytes",
        "identity_cookies",
        "secret",
    ),
    "Redis and channels": (
        "redis_url",
        "redis_prefix",
        "channel_ttl",
        "channel_max_events",
        "channel_max_bytes",
    ),
    "Limits": (
        "max_streams",
        "max_streams_per_client",
        "limit_action",
        "open_rate",
        "trusted_proxies",
    ),
    "Metrics and own paths": (
        "metrics_path",
        "usage_cost",
        "ready_path",
        "drain_path",
        "client_path",
        "admin_path",
        "admin_token",
        "admin_payloads",
    ),
}
"""The names of all settings, each in one group, by the title of the group."""
