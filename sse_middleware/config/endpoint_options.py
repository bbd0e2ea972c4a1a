"""The settings that a mark may override for its endpoint. `options.py` adds those of the app."""

from dataclasses import dataclass
from typing import Literal, get_args

from sse_middleware.config import fields
from sse_middleware.config.silence import SILENCE_SECONDS

CommentStyle = Literal["auto", "line", "block", "off"]
CapAction = Literal["complete", "rotate"]


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """The settings of one endpoint."""

    enabled: bool = fields.boolean(
        "SSE_ENABLED",
        "Whether the middleware is active; `0`: it passes everything through.",
        default=True,
    )
    stream_max_seconds: float | None = fields.seconds(
        "SSE_STREAM_MAX_SECONDS",
        60.0,
        "Maximum lifetime of a stream, from its response start; `off`: no cap. 60 s is the limit "
        "of many proxies. Unless it is set, plain clients, which cannot be notified, have no cap.",
        lowest=0.05,
        legacy_env="STREAM_MAX_SECONDS",
    )
    cap_action: CapAction = fields.choice(  # noqa: RUF009 - returns a field
        "SSE_CAP_ACTION",
        "complete",
        "The cap ends the stream (`complete`), or only the connection, and the `EventSource` "
        "resumes (`rotate`).",
        values=get_args(CapAction),
    )
    heartbeat_interval: float | None = fields.seconds(
        "SSE_HEARTBEAT_INTERVAL",
        5.0,
        "Time between two heartbeats; `off`: none. 0 is not allowed, because it would flood the "
        "client. 5 s is well below the idle limit of any proxy.",
        lowest=0.05,
        legacy_env="HEARTBEAT_INTERVAL",
    )
    silence_threshold: float | None = fields.seconds(
        "SSE_SILENCE_THRESHOLD",
        SILENCE_SECONDS,
        "Silence after which a client should reconnect, as announced to the client; `off`: never. "
        "Unless it is set, it is three heartbeats and at least 15 s, or off without heartbeats.",
        lowest=0.05,
        legacy_env="SILENCE_THRESHOLD",
    )
    chunk_delay_ms: int = fields.integer(
        "SSE_CHUNK_DELAY_MS",
        0,
        "Minimum time between two events of the app, to pace a burst; none is dropped. 0: none.",
        lowest=0,
        highest=60_000,
        unit="milliseconds",
        legacy_env="CHUNK_DELAY_MS",
    )
    batch: bool = fields.boolean(
        "SSE_BATCH",
        "Whether events that arrive within a few milliseconds are sent as one message. Use `0` for "
        "handlers that yield several events at once and then block the event loop.",
        default=True,
    )
    retry_ms: int = fields.integer(
        "SSE_RETRY_MS",
        2000,
        "Delay before an `EventSource` reconnects; the default of browsers is 3 to 5 s.",
        lowest=0,
        highest=3_600_000,
        unit="milliseconds",
    )
    send_timeout: float | None = fields.seconds(
        "SSE_SEND_TIMEOUT",
        30.0,
        "Time for which a client may block a write before it counts as disconnected; `off`: no "
        "limit. Servers and sockets buffer some megabytes before a write blocks.",
        lowest=0.05,
    )
    drain_seconds: float = fields.seconds(
        "SSE_DRAIN_SECONDS",
        5.0,
        "Time for which streams may continue after their server begins to shut down; 0: none. Set "
        "it to your longest answer, and the grace period of your process manager to a little more.",
        lowest=0.0,
        may_be_off=False,
    )
    linger_seconds: float = fields.seconds(
        "SSE_LINGER_SECONDS",
        15.0,
        "Time for which an app continues without a client, so that one can resume; 0: none.",
        lowest=0.0,
        may_be_off=False,
    )
    keep: bool = fields.boolean(
        "SSE_KEEP",
        "Whether streams are kept and can be resumed: by an `EventSource`, or by name; if it is "
        "set, also by the public id of any stream whose client has an identity.",
        default=True,
    )
    max_event_bytes: int = fields.integer(
        "SSE_MAX_EVENT_BYTES",
        1 << 20,
        "Maximum size of an event that is buffered until it is complete; a longer one is passed on "
        "in parts. Also the maximum size of the data of an event on a channel.",
        lowest=1024,
        highest=1 << 30,
        unit="bytes",
    )
    event_prefix: str = fields.text(
        "SSE_EVENT_PREFIX",
        "",
        "Prefix of the names of control events, for an app that has events of the same names.",
        pattern=r"[A-Za-z0-9._:-]{0,32}",
        allowed="at most 32 of A-Z, a-z, 0-9 and . _ : -",
    )
    comment_style: CommentStyle = fields.choice(  # noqa: RUF009 - returns a field
        "SSE_COMMENT_STYLE",
        "auto",
        "Whether a heartbeat comment has a blank line (`block`) or not (`line`), or is not sent; "
        "`auto`: a blank line until the stream has an id.",
        values=get_args(CommentStyle),
    )
    trace_in_data: bool = fields.boolean(
        "SSE_TRACE_IN_DATA",
        "Whether to add `trace_id` to each event of the app whose data is a JSON object.",
        default=False,
    )
