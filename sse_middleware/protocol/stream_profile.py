"""The profile of streams: all that the streams of one mark and one kind of client have in common.

It is computed once, so that the start of a stream computes nothing that another stream has too.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sse_middleware.config.options import Options
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm, comment_form
from sse_middleware.protocol.stream_terms import StreamTerms

ENDS_OF_APPS: Final = (b"complete", b"error")
"""The names of events with which an app itself ends its stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamProfile:
    """The common part of streams.

    Attributes:
        options: the settings, including those of the mark.
        terms: the announced parameters.
        client_kind: the kind of the client.
        app_ids: whether the app sets the ids of its events, and they are kept nevertheless.
        headers: the response headers that announce the terms.
        reads_control_events: whether the client is an `EventSource`, which receives control events.
        comment: the form of a heartbeat comment.
        end_names: the names of events with which the app itself can end a stream.
        is_openai: whether streams are in OpenAI's dialect; `None` if their first event shows it.
        send_timeout: how long a client may block a write, in seconds; infinite for any time.
        longest_drain_ms: how long a stream may continue in a drain.
        trace_in_data: whether the trace id is added to the data of events.
    """

    options: Options
    terms: StreamTerms
    client_kind: ClientKind
    app_ids: bool
    headers: Sequence[tuple[bytes, bytes]]
    reads_control_events: bool
    comment: CommentForm
    end_names: tuple[bytes, ...]
    is_openai: bool | None
    send_timeout: float
    longest_drain_ms: int
    trace_in_data: bool

    @classmethod
    def from_options(
        cls,
        options: Options,
        client_kind: ClientKind,
        *,
        terms: StreamTerms | None = None,
        app_ids: bool = False,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> "StreamProfile":
        """Return the profile of streams with some settings.

        Args:
            options: the settings, including those of the mark.
            client_kind: the kind of the client.
            terms: the terms of a stream that another client has opened, `None` for a new one.
            app_ids: as the attribute.
            headers: as the attribute.
        """
        terms = StreamTerms.from_options(options, client_kind) if terms is None else terms
        eventsource = client_kind is ClientKind.EVENTSOURCE
        prefix = terms.event_prefix.encode()
        return cls(
            options=options,
            terms=terms,
            client_kind=client_kind,
            app_ids=app_ids,
            headers=headers,
            reads_control_events=eventsource,
            comment=CommentForm.BLOCK if eventsource else comment_form(options.comment_style),
            end_names=tuple([prefix + name for name in ENDS_OF_APPS]),
            is_openai=None if client_kind is ClientKind.PLAIN else client_kind is ClientKind.OPENAI,
            send_timeout=math.inf if options.send_timeout is None else options.send_timeout,
            longest_drain_ms=int(options.drain_seconds * 1000),
            trace_in_data=options.trace_in_data,
        )
