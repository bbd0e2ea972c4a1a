"""Settings: each stands once, in the one table, with its variable, bounds, meaning and reason.

Precedence: mark, constructor argument, `SSE_*`, bare seed name, default. A bad argument or `SSE_*`
value is an error; a bad value under a bare name, which may belong to someone else, is a warning and
is passed over.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sse_middleware.config.fields import (
    Setting,
    flag,
    from_variables,
    globs,
    names,
    networks,
    seconds,
    text,
    url,
    whole,
)
from sse_middleware.errors import ConfigurationError

logger = logging.getLogger("sse_middleware")

CommentStyle = Literal["auto", "line", "block"]
CapAction = Literal["complete", "rotate"]
LimitAction = Literal["evict_oldest", "reject"]

_SILENCE = 15.0
_SILENT_HEARTBEATS = 3
"""How many have to be missing before a client should give a connection up."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an operator can set. `from_environ` reads, checks and combines all sources."""

    enabled: bool = flag(
        "SSE_ENABLED", "Whether we act at all; `0`: everything passes through.", default=True
    )
    stream_max_seconds: float | None = seconds(
        "SSE_STREAM_MAX_SECONDS",
        60.0,
        "The longest life of a stream, from its response start; `off`: no cap. 60 s is the limit "
        "of many proxies. Where nobody has set it, unmarked streams of plain clients have none.",
        lowest=0.05,
        bare="STREAM_MAX_SECONDS",
    )
    cap_action: CapAction = text(  # noqa: RUF009 - as the others
        "SSE_CAP_ACTION",
        "complete",
        "What the cap ends: the stream (`complete`), or just the connection, whose `EventSource` "
        "resumes (`rotate`). Where nobody has set it, unmarked streams rotate: feeds live on.",
        pattern="complete|rotate",
        allowed="complete or rotate",
    )
    heartbeat_interval: float | None = seconds(
        "SSE_HEARTBEAT_INTERVAL",
        5.0,
        "The time between two heartbeats; `off`: none; 0 is refused, it would flood. 5 s is well "
        "below any proxy's idle limit.",
        lowest=0.05,
        bare="HEARTBEAT_INTERVAL",
    )
    silence_threshold: float | None = seconds(
        "SSE_SILENCE_THRESHOLD",
        _SILENCE,
        "The silence after which a client should reconnect, announced to it; `off`: never. Where "
        "nobody has set it: three heartbeats and 15 s at least; never, where there are none.",
        lowest=0.05,
        bare="SILENCE_THRESHOLD",
    )
    chunk_delay_ms: int = whole(
        "SSE_CHUNK_DELAY_MS",
        0,
        "The least time between two content events, to pace a burst; nothing is dropped. 0: none.",
        lowest=0,
        highest=60_000,
        unit="milliseconds",
        bare="CHUNK_DELAY_MS",
    )
    batch: bool = flag(
        "SSE_BATCH",
        "Whether events that come within a few milliseconds leave as one message; `0` for handlers "
        "that yield several at once and then block the event loop.",
        default=True,
    )
    retry_ms: int = whole(
        "SSE_RETRY_MS",
        2000,
        "How long an `EventSource` waits before it reconnects; browsers alone wait 3 to 5 s.",
        lowest=0,
        highest=3_600_000,
        unit="milliseconds",
    )
    send_timeout: float | None = seconds(
        "SSE_SEND_TIMEOUT",
        30.0,
        "How long a client may block a write before it counts as gone; `off`: for ever. Servers "
        "and sockets take some megabytes before a write blocks.",
        lowest=0.05,
    )
    drain_seconds: float = seconds(
        "SSE_DRAIN_SECONDS",
        5.0,
        "How long streams may go on when their server ends; 0: not at all. Set it to your longest "
        "answer, and the grace period of whoever ends the server to a little more.",
        lowest=0.0,
        may_be_off=False,
    )
    linger_seconds: float = seconds(
        "SSE_LINGER_SECONDS",
        15.0,
        "How long an app goes on whose `EventSource` has gone away behind at least one event, so "
        "that it can come back and miss nothing; 0: not at all. 15 s is a change of network.",
        lowest=0.0,
        may_be_off=False,
    )
    max_lingering: int = whole(
        "SSE_MAX_LINGERING",
        100,
        "How many apps go on that way at once; the one that has waited longest gives way.",
        lowest=0,
        highest=1_000_000,
        unit="streams",
    )
    replay_max_events: int = whole(
        "SSE_REPLAY_MAX_EVENTS",
        10_000,
        "How many events of a stream are kept for those who come back; 0: none, and no stream is "
        "resumed.",
        lowest=0,
        highest=10_000_000,
        unit="events",
    )
    replay_max_bytes: int = whole(
        "SSE_REPLAY_MAX_BYTES",
        4 << 20,
        "How many bytes of a stream are kept.",
        lowest=1024,
        highest=1 << 30,
        unit="bytes",
    )
    replay_ttl: float = seconds(
        "SSE_REPLAY_TTL",
        60.0,
        "How long the events of a stream are kept behind its end.",
        lowest=0.0,
        may_be_off=False,
    )
    memory_max_bytes: int = whole(
        "SSE_MEMORY_MAX_BYTES",
        256 << 20,
        "How much memory the events of all streams may take in a process; the oldest ended stream "
        "goes first.",
        lowest=1 << 16,
        highest=1 << 50,
        unit="bytes",
    )
    redis_url: str = url(
        "SSE_REDIS_URL",
        "The Redis in which events are kept, for all workers; empty: the memory of each process.",
        schemes=("redis", "rediss", "unix", "redis+cluster", "rediss+cluster"),
    )
    redis_prefix: str = text(
        "SSE_REDIS_PREFIX",
        "sse:",
        "What stands before the names of our keys.",
        pattern=r"[A-Za-z0-9._:-]{0,64}",
        allowed="at most 64 of A-Z, a-z, 0-9 and . _ : -",
    )
    channel_ttl: float = seconds(
        "SSE_CHANNEL_TTL",
        3600.0,
        "How long a channel is kept behind its last event, so that a browser may come after the "
        "worker.",
        lowest=0.05,
        may_be_off=False,
    )
    channel_max_events: int = whole(
        "SSE_CHANNEL_MAX_EVENTS",
        10_000,
        "How many events of a channel are kept.",
        lowest=1,
        highest=10_000_000,
        unit="events",
    )
    channel_max_bytes: int = whole(
        "SSE_CHANNEL_MAX_BYTES",
        4 << 20,
        "How many bytes of a channel are kept.",
        lowest=1024,
        highest=1 << 30,
        unit="bytes",
    )
    identity_cookies: tuple[str, ...] = names(
        "SSE_IDENTITY_COOKIES",
        "The cookies that tell whose a stream is, where a request has no `Authorization`; only "
        "who sends the same ones can resume it.",
    )
    max_streams: int | None = whole(
        "SSE_MAX_STREAMS",
        None,
        "How many streams a process may have open; `off`: any number. Readers that resume one, "
        "and streams that wait for theirs, do not count.",
        lowest=1,
        highest=1_000_000,
        unit="streams",
    )
    max_streams_per_client: int | None = whole(
        "SSE_MAX_STREAMS_PER_CLIENT",
        None,
        "How many of them one client may have, known by its identity, else by its address; with "
        "`SSE_REDIS_URL` on all workers together.",
        lowest=1,
        highest=100_000,
        unit="streams",
    )
    limit_action: LimitAction = text(  # noqa: RUF009 - as the others
        "SSE_LIMIT_ACTION",
        "evict_oldest",
        "What happens over these: an older stream ends (`evict_oldest`), or the new one is "
        "answered by 429 or 503 (`reject`). Where nobody has set it, an `EventSource`, which any "
        "such status stops for good, ends an older one, and others are rejected.",
        pattern="evict_oldest|reject",
        allowed="evict_oldest or reject",
    )
    open_rate: str = text(
        "SSE_OPEN_RATE",
        "",
        "How often a client may open a stream, such as `30/minute` or `5/10 seconds`; empty: any "
        "number of times. Needs `sse-middleware[limits]`.",
        pattern=r"([1-9]\d{0,5} ?(/|per) ?([1-9]\d{0,4} )?(second|minute|hour|day)s?)?",
        allowed="a number per second, minute, hour or day, such as 30/minute, or nothing",
    )
    trusted_proxies: tuple[str, ...] = networks(
        "SSE_TRUSTED_PROXIES",
        "Your proxies, who are believed when they tell by `X-Forwarded-For` or `Forwarded` for "
        "whom they ask; `unix`: whoever connects by a unix socket.",
    )
    max_event_bytes: int = whole(
        "SSE_MAX_EVENT_BYTES",
        1 << 20,
        "The longest event that is held until it is whole; a longer one passes in parts. And the "
        "longest data of an event that may be published on a channel.",
        lowest=1024,
        highest=1 << 30,
        unit="bytes",
    )
    include: tuple[str, ...] = globs(
        "SSE_INCLUDE", "The paths to act on (`*` matches a `/` too); empty: all."
    )
    exclude: tuple[str, ...] = globs("SSE_EXCLUDE", "The paths to leave alone.")
    only_marked: bool = flag(
        "SSE_ONLY_MARKED", "Whether to act on marked endpoints only.", default=False
    )
    event_prefix: str = text(
        "SSE_EVENT_PREFIX",
        "",
        "What stands before the names of our events, where an app has such names of its own.",
        pattern=r"[A-Za-z0-9._:-]{0,32}",
        allowed="at most 32 of A-Z, a-z, 0-9 and . _ : -",
    )
    comment_style: CommentStyle = text(  # noqa: RUF009 - as the others
        "SSE_COMMENT_STYLE",
        "auto",
        "Whether a heartbeat comment has a blank line (`block`) or not (`line`); `auto` looks at "
        "the client.",
        pattern="auto|line|block",
        allowed="auto, line or block",
    )
    trace_in_data: bool = flag(
        "SSE_TRACE_IN_DATA",
        "Whether to add `trace_id` to each event of the app whose data is a JSON object.",
        default=False,
    )
    ready_path: str = text(
        "SSE_READY_PATH",
        "",
        "Where to answer 200, and 503 once the server ends, below the app's `root_path`; empty: "
        "nowhere.",
        pattern=r"(/[^?#\s]+)?",
        allowed="a path with a / first, or nothing",
    )
    metrics_path: str = text(
        "SSE_METRICS_PATH",
        "/metrics",
        "Where the metrics are served, below the app's `root_path`; empty: nowhere. Where nobody "
        "has set it, an app that answers there itself keeps the path.",
        pattern=r"(/[^?#\s]+)?",
        allowed="a path with a / first, or nothing",
    )
    client_path: str = text(
        "SSE_CLIENT_PATH",
        "",
        "Where the browser client is served, such as `/sse-client.js`, below the app's "
        "`root_path`; the React hook lies beside it. Empty: nowhere.",
        pattern=r"(/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-])?",
        allowed="a path with a / first and of A-Z, a-z, 0-9 and . _ ~ / -, or nothing",
    )
    rollout_percent: int = whole(
        "SSE_ROLLOUT_PERCENT",
        100,
        "The share of clients that we act for; the streams of the others are measured and not "
        "touched (family `off`).",
        lowest=0,
        highest=100,
        unit="percent",
    )

    explicit: frozenset[str] = frozenset()
    """The names of the fields that someone has set, by mark, argument or variable."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **arguments: object) -> "Options":
        """Combine `arguments` (by field name), the variables of `environ` and the defaults.

        Raises:
            ConfigurationError: an argument or a `SSE_*` variable is not allowed.
            TypeError: an argument has no such field.
        """
        values = checked(arguments)
        for name, setting in SETTINGS.items():
            if name not in values and (found := from_variables(setting, environ)):
                values[name] = found[0]
        return _with_silence(cls(**values, explicit=frozenset(values)))

    def with_overrides(self, overrides: Mapping[str, Any]) -> "Options":
        """Return these options with those of a mark, which `checked` has seen, before them."""
        explicit = self.explicit | overrides.keys()
        return _with_silence(dataclasses.replace(self, **overrides, explicit=explicit))

    def rotates(self, *, marked: bool) -> bool:
        """Tell whether the cap ends a connection only, and not the stream."""
        if "cap_action" in self.explicit:
            return self.cap_action == "rotate"
        return not marked

    def evicts(self, *, eventsource: bool) -> bool:
        """Tell whether a stream that is too many ends an older one."""
        if "limit_action" in self.explicit:
            return self.limit_action == "evict_oldest"
        return eventsource

    @property
    def limits_something(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.max_streams or self.max_streams_per_client or self.open_rate)


SETTINGS: Mapping[str, Setting] = {
    item.name: item.metadata["setting"]
    for item in dataclasses.fields(Options)
    if "setting" in item.metadata
}
"""The one table: a field's name and how it is set."""


def checked(arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return `arguments` where each is a field of `Options` and allowed.

    Raises:
        ConfigurationError: one is not allowed.
        TypeError: one has no such field.
    """
    unknown = arguments.keys() - SETTINGS.keys()
    if unknown:
        raise TypeError(
            f"no such option: {', '.join(sorted(unknown))}; there are: {', '.join(SETTINGS)}"
        )
    for name, value in arguments.items():
        if not SETTINGS[name].check(value):
            raise ConfigurationError(name, SETTINGS[name].masked(value), SETTINGS[name].allowed)
    return dict(arguments)


def _with_silence(options: Options) -> Options:
    """Return `options` with a silence threshold that suits the heartbeats."""
    silence, interval = options.silence_threshold, options.heartbeat_interval
    if "silence_threshold" not in options.explicit:
        silence = None if interval is None else max(_SILENCE, _SILENT_HEARTBEATS * interval)
        return dataclasses.replace(options, silence_threshold=silence)
    if silence is not None and interval is not None and silence <= interval:
        logger.warning(
            "silence_threshold is %g s and heartbeat_interval %g s: between two heartbeats clients "
            "take a silent stream for dead; allow for more silence",
            silence,
            interval,
        )
    return options
