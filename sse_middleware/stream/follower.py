"""One request that follows the log of a stream, without running the app.

Stored events and later ones are one sequence. The log is read only as fast as the client reads, and
a follower never writes to it.
"""

import asyncio
import random
import time
from contextlib import aclosing
from dataclasses import replace

from starlette.types import Message, Receive, Send

from sse_middleware.errors import StoreError
from sse_middleware.http.request import SSERequest
from sse_middleware.http.response_head import (
    OWN_HEADERS,
    announcing_headers,
    body_message,
    parse_headers,
    stream_headers,
)
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.connection_state import (
    ConnectionInput,
    ConnectionPhase,
)
from sse_middleware.protocol.dialect import Dialect
from sse_middleware.protocol.stream_end import Reason
from sse_middleware.protocol.stream_profile import StreamProfile
from sse_middleware.stores.base import LogInfo
from sse_middleware.stream.cancellation import LAST_WRITE_SECONDS, SHUTDOWN_GRACE_SECONDS
from sse_middleware.stream.compressed import compressed
from sse_middleware.stream.connection import Connection
from sse_middleware.stream.context import Context
from sse_middleware.stream.report import Report
from sse_middleware.stream.sender import Sender
from sse_middleware.stream.timers import current_timers

_LOG_END_SECONDS = 0.1
"""A little more than the time of the stream in a drain, so that its end arrives first."""


class Follower:
    """Send one client the rest of a stream.

    Args:
        context: the objects that all requests of one middleware share.
        request: the request.
        receive: the server's `receive`.
        send: the server's `send`.
        info: the description of the log.
        after: the number of the event after which the client resumes.
        event_id: the event id that the client has, `None` for none.
        secret: the secret of the stream, `""` if the ids are not ours or it is not known here.
        reset: why the client cannot resume there, `""` if it can.
        client_kind: the kind of the client.
        cache: the value of `X-Stream-Cache`, `""` if the client has asked for this stream.
    """

    def __init__(
        self,
        context: Context,
        request: SSERequest,
        receive: Receive,
        send: Send,
        *,
        info: LogInfo,
        after: int,
        event_id: str | None,
        secret: str = "",
        reset: str = "",
        client_kind: ClientKind = ClientKind.EVENTSOURCE,
        cache: str = "",
    ) -> None:
        self._context = context
        self._reset = reset
        self._event_id = event_id
        self._request = request
        self._receive = receive
        self._send = send
        self._after = after
        self._tasks: list[asyncio.Task[None]] = []
        self._timers = current_timers()
        self._timer_bucket: int | None = None
        self._record = StreamRecord(
            info.stream_id,
            request.trace_id,
            info.route,
            client_kind,
            resumed_after=after,
            chunks=after,
            cache=cache,
        )
        has_ids = client_kind is ClientKind.EVENTSOURCE
        if not has_ids and info.terms.rotates:  # such a client cannot be told to reconnect
            info = replace(info, terms=replace(info.terms, rotates=False, max_seconds=None))
        self._info = info
        profile = StreamProfile.from_options(
            context.options,
            client_kind,
            terms=info.terms,
            app_ids=info.app_ids,
            headers=announcing_headers(info.terms),
        )
        self._dialect = Dialect(profile, self._record, secret if has_ids else "")
        self._report = Report(self._record, context.observers, self._timers.clock)
        send = compressed(send, request, context.options.compression)
        sender = Sender(send, self._timers, self._record, context.observers)
        self._connection = Connection(self._dialect, sender, self)

    async def send_head(self) -> None:
        """Send the response start alone, for a HEAD; the client is no reader."""
        await self._send(self._start())
        await self._send(body_message(b"", more_body=False))

    async def run(self) -> None:
        """Send events until the stream ends, the cap is reached or the client disconnects."""
        preamble = self._open(self._timers.clock())
        self._timers.drain.add(self)
        grace_seconds = LAST_WRITE_SECONDS
        try:
            self._set_timer(self._timers.clock())
            # The stream has a reader from now on, even if its server blocks the response start.
            self._tasks = [asyncio.ensure_future(self._follow())]
            await self._connection.open(self._start(), preamble)
            self._timers.flush_after_tick(self)
            self._tasks.append(asyncio.ensure_future(self._wait_for_disconnect()))
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.on_drain_over()
            grace_seconds = SHUTDOWN_GRACE_SECONDS
            raise
        finally:
            await self._aclose(grace_seconds)

    def _open(self, now: float) -> bytes:
        """Begin the span, report the opening, and return the preamble."""
        record, info, scope = self._record, self._info, self._request.scope
        record.opened_at = now - max(0.0, time.time() - info.opened_on)
        self._context.tracing.begin(record, scope, link=info.traceparent)
        preamble = self._dialect.open(
            now,
            self._timers.epoch(),
            reset=self._reset,
            resumed=True,
            event_id=self._event_id,
            jitter=random.random(),  # noqa: S311 - no secret
            ends_in=self._context.credential_ttl(scope),
        )
        self._report.open(now)
        return preamble

    def on_connection_closed(self, _: Connection) -> None:
        """Cancel the tasks, because there is no client any more."""
        for task in self._tasks:
            task.cancel()
        self._set_timer(self._timers.clock())

    def on_tick(self) -> None:
        """Send the first bytes, if no event has come with them."""
        self._connection.sender.flush_soon()

    def on_timer(self, now: float) -> None:
        """Perform the actions that are due, and set the timer for the next ones."""
        if self._timer_bucket is None:  # it has been cancelled meanwhile
            return
        try:
            self._report.progress(now)
            if self._connection.on_deadline(now):
                rotates = self._info.terms.rotates
                (self._connection.rotate if rotates else self._connection.cut)(now)
        finally:
            self._set_timer(now)

    @property
    def drain_seconds(self) -> float:
        """How long the client may stay when its server shuts down."""
        return self._context.options.drain_seconds + _LOG_END_SECONDS

    def on_drain(self) -> None:
        """Disconnect the client if it can resume on another worker."""
        self._record.note("drain")
        if self._context.store.is_shared and self._dialect.reads_control_events:
            self.on_drain_over()

    def on_drain_over(self) -> bool:
        """Disconnect the client, because the server waits for nothing else."""
        self._dialect.prepare_to_drain()
        self._connection.rotate(self._timers.clock())
        return False

    def _start(self) -> Message:
        info = self._info
        kept = [pair for pair in parse_headers(info.headers) if pair[0].lower() != b"cache-control"]
        headers = stream_headers(
            [*kept, *OWN_HEADERS],
            self._dialect.profile.headers,
            trace_id=self._record.trace_id,
            stream_id=info.stream_id,
        )
        if self._record.cache:
            headers.append((b"x-stream-cache", self._record.cache.encode()))
        return {"type": "http.response.start", "status": 200, "headers": headers}

    async def _follow(self) -> None:
        store, connection = self._context.store, self._connection
        try:
            # The client counts as a reader of the log until its connection is closed.
            async with aclosing(store.follow(self._info.stream_id, self._after)) as log:
                await connection.follow(log, self._after, self._timers.clock)
                await connection.until_closed()
        except StoreError:
            connection.on_store_failure()
            await connection.until_closed()

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._connection.on_disconnect()

    def _set_timer(self, now: float) -> None:
        deadline = self._connection.deadline(now)
        self._timer_bucket = self._timers.move(self, self._timer_bucket, deadline)

    async def _aclose(self, grace_seconds: float) -> None:
        sender, connection = self._connection.sender, self._connection
        for task in self._tasks:
            task.cancel()
        try:
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
            async with asyncio.timeout(grace_seconds):
                while connection.phase is ConnectionPhase.CLOSING:
                    await sender.wait_for_room()
        except TimeoutError:
            pass
        finally:
            failure = sender.failure
            connection.release()
            self._set_timer(self._timers.clock())
            self._timers.drain.remove(self)
            self._report_end()
        for result in results:
            if isinstance(result, Exception):
                raise result
        if failure is not None:
            raise failure

    def _report_end(self) -> None:
        if self._connection.closed_by is ConnectionInput.WRITTEN:
            self._report.end(self._dialect.outcome or Reason.DURATION_CAP)
        else:
            self._record.note_disconnect()
            self._report.end("disconnected")
