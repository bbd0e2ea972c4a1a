"""The terms of a stream: its parameters as announced to clients.

They are fixed when the stream opens. The log stores them, so that a connection on another worker
announces and applies the same ones.
"""

from dataclasses import dataclass

from sse_middleware.config.options import Options
from sse_middleware.protocol.client_kinds import ClientKind


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTerms:
    """The announced parameters of one stream.

    Attributes:
        max_seconds: the cap, `None` for none.
        rotates: whether the cap ends only the connection, not the stream.
        heartbeat_interval: in seconds, `None` for no heartbeats.
        silence_threshold: in seconds, `None` for none.
        event_prefix: the prefix of the names of control events.
        retry_ms: the delay before a client reconnects, in milliseconds.
    """

    max_seconds: float | None
    rotates: bool
    heartbeat_interval: float | None
    silence_threshold: float | None
    event_prefix: str
    retry_ms: int

    @classmethod
    def from_options(cls, options: Options, client_kind: ClientKind) -> "StreamTerms":
        """Return the terms of a new stream.

        Args:
            options: the settings, including those of the mark.
            client_kind: the kind of the client that opens the stream.
        """
        eventsource = client_kind is ClientKind.EVENTSOURCE
        # A plain client cannot be notified of the cap: it would take a part for the whole.
        is_notified = eventsource or client_kind in (ClientKind.OPENAI, ClientKind.JSON)
        capped = is_notified or "stream_max_seconds" in options.explicit
        heartbeat, silence = options.heartbeat_interval, options.silence_threshold
        if (options.comment_style == "off" and not eventsource) or client_kind is ClientKind.JSON:
            heartbeat = None
            silence = silence if "silence_threshold" in options.explicit else None
        retry_ms = options.retry_ms
        if options.linger_seconds:  # a client that reconnects later finds no stream
            retry_ms = min(retry_ms, int(options.linger_seconds * 1000))
        return cls(
            max_seconds=options.stream_max_seconds if capped else None,
            rotates=eventsource and options.cap_action == "rotate",
            heartbeat_interval=heartbeat,
            silence_threshold=silence,
            event_prefix=options.event_prefix,
            retry_ms=retry_ms,
        )


NO_TERMS = StreamTerms(
    max_seconds=None,
    rotates=False,
    heartbeat_interval=None,
    silence_threshold=None,
    event_prefix="",
    retry_ms=0,
)
"""The terms of a stream that receives response headers and nothing else."""
