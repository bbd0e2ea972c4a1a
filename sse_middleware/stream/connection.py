"""A connection that follows a log, without running the app.

Stored events and later ones are one sequence. The connection tracks its own position, reads from
the log only as fast as its client reads, and never writes to the log.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.types import Message, Receive, Send

from sse_middleware.errors import StoreError
from sse_middleware.http.request import SSERequest
from sse_middleware.http.response_head import (
    OWN_HEADERS,
    body_message,
    parse_headers,
    stream_headers,
)
from sse_middleware.observability.stream_record import StreamRecord
from sse_middleware.protocol.client_kinds import ClientKind, CommentForm
from sse_middleware.protocol.deadlines import Reason
from sse_middleware.protocol.stream_state import StreamState
from sse_middleware.stores.base import Batch, LogInfo, LogState
from sse_middleware.stream.cancellation import GRACE_SECONDS, SHUTDOWN_GRACE_SECONDS
from sse_middleware.stream.context import Context
from sse_middleware.stream.producer import Producer
from sse_middleware.stream.sender import joined
from sse_middleware.stream.timers import current_timers

logger = logging.getLogger("sse_middleware")

_LOG_END_SECONDS = 0.1


class ConnectionSender(Producer):
    """Write complete events that a log has already numbered.

    Attributes:
        is_resumable_elsewhere: whether the client can resume on another worker.
    """

    __slots__ = ("is_resumable_elsewhere",)

    is_resumable_elsewhere: bool

    @property
    def drain_seconds(self) -> float:
        """A little more than the time of the stream, so that its end arrives first."""
        return super().drain_seconds + _LOG_END_SECONDS

    def on_drain(self) -> None:
        """Disconnect the client if it can resume on another worker."""
        if self.is_resumable_elsewhere:
            self.on_drain_over()

    def on_drain_over(self) -> None:
        """Disconnect the client, because the server waits for nothing else."""
        if not self._is_ended():
            self._state.prepare_to_drain()
            self._end_connection(self._clock(), Reason.SHUTDOWN)

    async def write_frames(self, frames: bytes, last: int, *, reason: Reason | None = None) -> None:
        """Send frames up to the event `last`, and end the response if there is a `reason`."""
        await self._wait_for_turn()
        if self._closed:
            return
        self._raise_failure()
        data = joined([*self._take_pending(), frames])
        self._state.advance_to(last, self._clock())
        if reason is not None:
            self._stop_timer()
            self._state.end_from_log(reason)
        if data or reason is not None:
            await self._send_as_app(body_message(data, more_body=reason is None), len(data))


class Connection:
    """Send one client the rest of a stream.

    Args:
        context: the objects that all requests of one middleware share.
        scope: the scope of the request.
        receive: the server's `receive`.
        send: the server's `send`.
        info: the description of the log.
        after: the number of the event after which the client resumes.
        event_id: the event id that the client has, `None` for none.
        secret: the secret of the stream, `""` if the ids are not ours or it is not known here.
        reset: why the client cannot resume there, `""` if it can.
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
    ) -> None:
        self._context = context
        self._request = request
        self._receive = receive
        self._info = info
        self._secret = secret
        self._after = after
        self._tasks: list[asyncio.Task[None]] = []
        self._record = StreamRecord(
            info.stream_id,
            request.trace_id,
            info.route,
            ClientKind.EVENTSOURCE,
            resumed_after=after,
            chunks=after,
        )
        self._options = dataclasses.replace(context.options, batch=False, chunk_delay_ms=0)
        self._state = StreamState(
            self._options,
            info.terms,
            client_kind=ClientKind.EVENTSOURCE,
            record=self._record,
            secret=secret,
            marked=info.marked,
            comment=CommentForm.BLOCK,
            app_ids=info.app_ids,
        )
        timers = current_timers()
        self._preamble = self._state.open(
            timers.clock(),
            timers.epoch(),
            reset=reset,
            resumed=True,
            event_id=event_id,
            age=max(0.0, time.time() - info.opened_on),
            ends_in=context.credential_ttl(request.scope),
        )
        self._sender = ConnectionSender(
            self._state, send, timers, observers=context.observers, callbacks=self
        )
        self._sender.is_resumable_elsewhere = context.store.is_shared

    async def run(self) -> None:
        """Send events until the stream ends, the cap is reached or the client disconnects."""
        grace_seconds = GRACE_SECONDS
        try:
            await self._sender.open(self._start(), self._preamble)
            follow_task = asyncio.ensure_future(self._follow())
            disconnect_task = asyncio.ensure_future(self._wait_for_disconnect())
            self._tasks = [follow_task, disconnect_task]
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._sender.on_drain_over()
            grace_seconds = SHUTDOWN_GRACE_SECONDS
            raise
        finally:
            await self._aclose(grace_seconds)

    def on_cap(self) -> None:
        """Do nothing: `on_end` follows."""

    def on_end(self) -> None:
        """Cancel the tasks, because the end of the connection is being written."""
        for task in self._tasks:
            task.cancel()

    def watch_for_disconnect(self) -> None:
        """Do nothing: a connection always receives."""

    async def on_write_after_end(self) -> None:
        """Do nothing: no app writes here."""

    def _start(self) -> Message:
        info = self._info
        kept = [pair for pair in parse_headers(info.headers) if pair[0].lower() != b"cache-control"]
        headers = stream_headers(
            [*kept, *OWN_HEADERS],
            info.terms,
            trace_id=self._record.trace_id,
            stream_id=info.stream_id,
        )
        return {"type": "http.response.start", "status": 200, "headers": headers}

    async def _follow(self) -> None:
        try:
            async with aclosing(
                self._context.store.follow(self._info.stream_id, self._after)
            ) as log:
                await self._forward_log(log)
        except StoreError:
            # The client keeps its event id and retries.
            await self._sender.write_frames(b"", self._record.chunks, reason=Reason.UNAVAILABLE)

    async def _forward_log(self, log: AsyncGenerator[Batch, None]) -> None:
        write = self._sender.write_frames
        async for state, last, frames in log:
            if state is LogState.RUNNING:
                await write(frames, last)
            elif state is LogState.TRUNCATED:
                await write(self._state.reset_truncated(last), last)
            elif state is LogState.LOST:
                await write(self._state.producer_lost(), last, reason=Reason.LOST)
            else:
                await write(frames, last, reason=_REASONS.get(state, Reason.GONE))

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _aclose(self, grace_seconds: float) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
        except asyncio.CancelledError:  # repeated, as anyio does in each iteration
            grace_seconds = 0.0
            raise
        finally:
            if self._state.reason is None and not self._sender.broken:
                self._sender.on_disconnect()
            await self._sender.aclose(grace_seconds, "disconnected")
        for result in results:
            if isinstance(result, Exception) and not self._sender.broken:
                raise result


_REASONS = {LogState.CANCELLED: Reason.CANCELLED, LogState.FINISHED: Reason.FINISHED}
