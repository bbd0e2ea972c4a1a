"""Transform the events of an app, and check their order, before the producer receives them.

`AppEvents` stands between the app and its producer, for streams whose mark has a transform or an
order; other streams do not have the object. It splits the bytes of the app into events, calls the
transform with each event, and passes the bytes of the returned events to the producer, which
counts, records and writes them as if the app had sent them. Bytes between two events, such as
comments, are passed on unchanged.

A transform may have the purpose of removing something, such as a secret. Therefore an event that
cannot be transformed is dropped, never passed on unchanged. This applies if the transform raises,
or returns anything but events; if the event is longer than `SSE_MAX_EVENT_BYTES`; and if the stream
ends in the middle of the event. Each drop is counted, and the first one of a stream is logged.
"""

import asyncio
import inspect
import logging
from typing import Final

from starlette.types import Message

from sse_middleware.errors import SSEError
from sse_middleware.http.response_head import BODY, body_message
from sse_middleware.protocol import openai
from sse_middleware.protocol.event_order import OrderCheck
from sse_middleware.protocol.event_rules import EventRules
from sse_middleware.protocol.intake import begins_event_stream
from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.wire import Kind, Piece, Splitter, format_sse_event, joined
from sse_middleware.stream.producer import Producer

logger = logging.getLogger("sse_middleware")
debug_logger = logging.getLogger("sse_middleware.stream")

_PATHSEND: Final = "http.response.pathsend"
_DONE: Final = openai.DONE.decode()


class AppEvents:
    """The events of one stream, on their way from the app to the producer.

    Args:
        producer: receives the transformed bytes.
        rules: the transform and the order that the mark sets.
    """

    __slots__ = (
        "_head",
        "_is_raw",
        "_order",
        "_parser",
        "_record",
        "_send",
        "_splitter",
        "_takes_lf",
        "_transform",
        "_turn",
    )

    def __init__(self, producer: Producer, rules: EventRules) -> None:
        self._send = producer.write
        self._record = producer.report.record
        self._splitter = Splitter(producer.profile.options.max_event_bytes)
        self._parser = EventParser()
        self._transform = rules.new_transform()
        self._order = OrderCheck(rules.order) if rules.order else None
        self._turn = asyncio.Lock()  # keeps messages in order if the app sends in several tasks
        self._head: bytes | None = b""  # the first bytes; `None` after they are checked
        self._is_raw = False
        self._takes_lf = False  # a LF that comes next is the rest of a CRLF of a replaced event

    async def write(self, message: Message) -> None:
        """Transform the events in a message of the app, and pass the message to the producer.

        Raises:
            RuntimeError: the app sends the path of a file (ASGI `pathsend`), so that its events
                cannot be read here.
        """
        if message["type"] != BODY:
            if message["type"] == _PATHSEND:
                raise RuntimeError("transform and order need events that the app sends itself")
            await self._send(message)
            return
        async with self._turn:
            body, is_last = bytes(message.get("body", b"")), not message.get("more_body", False)
            if not self._is_raw:
                body = await self._process(body, is_last=is_last)
            if body or is_last:
                await self._send(body_message(body, more_body=not is_last))
            else:
                await asyncio.sleep(0)  # let other tasks run: nothing was sent that waits

    async def _process(self, body: bytes, *, is_last: bool) -> bytes:
        if self._head is not None:
            head = (self._head + body).lstrip(b"\r\n")
            is_event_stream = begins_event_stream(head)
            self._head = None if is_event_stream else head
            if is_event_stream is False:  # pass the response on unchanged, as if unmarked
                self._is_raw = True
                return self._splitter.flush() + body
        parts = [await self._processed(piece) for piece in self._splitter.feed(body)]
        if is_last and (tail := self._splitter.flush()):
            if self._transform is None:
                parts.append(tail)
            else:
                self._on_failure("it has no blank line at its end")
        return b"".join(parts)

    async def _processed(self, piece: Piece) -> bytes:
        kind, data = piece
        if kind in (Kind.PART, Kind.LAST_PART):
            if self._transform is not None and kind is Kind.LAST_PART:
                self._on_failure("it is longer than SSE_MAX_EVENT_BYTES")
            return data if self._transform is None else b""
        takes_lf, self._takes_lf = self._takes_lf and data == b"\n", False
        events = self._parser.feed(data)
        if not events:
            return b"" if takes_lf else data
        sent = await self._in_place_of(events[0], data)  # a piece contains at most one event
        self._takes_lf = sent is not data and data.endswith(b"\r")
        return sent

    async def _in_place_of(self, event: Event, data: bytes) -> bytes:
        """Return the bytes that replace an event.

        Args:
            event: the parsed event.
            data: its bytes, which are returned if the event remains as it is.
        """
        if self._transform is None or event.data == _DONE:
            self._check(event)
            return data
        try:
            result = self._transform(event)
            if inspect.isawaitable(result):
                result = await result
            events = (result,) if isinstance(result, Event) else tuple(result or ())
            encoded = [data if one is event else _encode(one) for one in events]
        except Exception as exc:  # noqa: BLE001 - logged
            self._on_failure("the function has failed", exc)
            return b""
        for one in events:
            self._check(one)
        return joined(encoded) if encoded else b""

    def _check(self, event: Event) -> None:
        if self._order is None:
            return
        record = self._record
        debug_logger.debug("event %.80a of stream %s", event.event, record.stream_id)
        if after := self._order.add(event.event):
            sources = record.source_record()
            sources.order_violations += 1
            if sources.order_violations == 1:
                logger.warning(
                    "an event %.80a of route %s follows an event %.80a, against the order of its "
                    "mark, trace id %s; further ones of this stream are counted",
                    event.event,
                    record.route,
                    after,
                    record.trace_id,
                )

    def _on_failure(self, reason: str, exc: Exception | None = None) -> None:
        record = self._record
        sources = record.source_record()
        sources.transform_errors += 1
        if sources.transform_errors == 1:
            logger.error(
                "an event of route %s cannot be transformed, and is dropped: %s, trace id %s; "
                "further ones of this stream are counted",
                record.route,
                reason,
                record.trace_id,
                exc_info=exc,
            )


def _encode(event: object) -> bytes:
    if not isinstance(event, Event):
        raise _NoEventError(f"transform has returned {type(event).__name__}, allowed is an Event")
    return format_sse_event(event.data, event=event.event, id=event.id, retry=event.retry)


class _NoEventError(SSEError, TypeError):
    """A transform has returned a value that is not an event."""
