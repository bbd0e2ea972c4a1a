"""How a stream has ended, for the function `on_end` of its mark."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sse_middleware.observability.source_record import TokenUsage
from sse_middleware.protocol.parser import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class EndInfo:
    """How a stream has ended.

    Attributes:
        stream_id: its public id.
        name: its name, `""` if it has none.
        route: the template of its route, or the name of its mark.
        reason: how it has ended, as in metrics and logs: `finished`, `error`, `incomplete`,
            `duration_cap`, `cancelled`, `evicted`, `shutdown`, `disconnected` if the client has
            left, or `aborted` if the server has cancelled the app.
        trace_id: the trace id of the request.
        chunks: the number of events that the app has sent.
        tokens: the tokens that the app has counted.
        usage: those that providers have reported, by kind.
        duration_seconds: the time from its response start to its end.
        truncated: whether some of its events are missing, because they exceeded
            `SSE_REPLAY_MAX_EVENTS`, `SSE_REPLAY_MAX_BYTES` or `SSE_MAX_EVENT_BYTES`. The others are
            its last ones.
        annotations: the fields that the app has added by `current_stream().annotate`.
    """

    stream_id: str
    name: str
    route: str
    reason: str
    trace_id: str
    chunks: int
    tokens: int
    duration_seconds: float
    truncated: bool
    usage: TokenUsage = field(default_factory=TokenUsage)
    annotations: Mapping[str, object] = field(default_factory=dict)


OnEnd = Callable[[EndInfo, list[Event]], object]
"""Receives how a stream has ended, and its events. If it returns an awaitable, that is awaited."""
