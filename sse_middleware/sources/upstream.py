"""Upstream: read an event stream of another service, with a client of httpx or httpx2.

The next bytes are read when the consumer asks for them, so that a slow consumer slows the upstream
down. The response is closed when the iterator is: at its end, at a failure, or when the stream of
the app is over and its task is cancelled.

httpx and httpx2 are not imported here; their exceptions are found by the class of the client.
"""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any, Final, Literal, NamedTuple, Protocol, overload

from starlette import status

from sse_middleware.errors import ConfigurationError
from sse_middleware.protocol.parser import Event, EventParser
from sse_middleware.protocol.wire import Kind, Splitter
from sse_middleware.sources.errors import UpstreamError
from sse_middleware.stream.current import current_stream

_LIBRARIES: Final = ("httpx2", "httpx")
_EVENT_STREAM: Final = "text/event-stream"
_BODY_BYTES: Final = 4096
"""The most bytes of the body of an error that are read."""
_BODY_SECONDS: Final = 1.0
"""The most time for which they are awaited."""
_RETRY_DIGITS: Final = 6
_PASSED_ON: Final = frozenset(
    (
        status.HTTP_400_BAD_REQUEST,
        413,  # its name, and that of 422, differs between versions of Starlette
        422,
        status.HTTP_429_TOO_MANY_REQUESTS,
        status.HTTP_503_SERVICE_UNAVAILABLE,
        status.HTTP_504_GATEWAY_TIMEOUT,
    )
)
"""The statuses that concern the client's request or the load. Any other one, such as 401 for the
app's own key, is a fault between the app and its upstream (502)."""


class AsyncClient(Protocol):
    """The part of `httpx.AsyncClient` and `httpx2.AsyncClient` that is used."""

    async def send(self, request: Any, *, stream: bool = False) -> Any:
        """Send a request, and return its response."""


class _Failures(NamedTuple):
    """The exceptions of the library of a client.

    Attributes:
        all: its failures.
        timeouts: those that are time-outs.
    """

    all: tuple[type[Exception], ...]
    timeouts: type[Exception]


@overload
def upstream(
    client: AsyncClient,
    request: Any,
    *,
    parse: Literal[False] = False,
    max_event_bytes: int = 1 << 20,
) -> AsyncGenerator[bytes, None]: ...
@overload
def upstream(
    client: AsyncClient,
    request: Any,
    *,
    parse: Literal[True],
    max_event_bytes: int = 1 << 20,
) -> AsyncGenerator[Event, None]: ...
def upstream(
    client: AsyncClient, request: Any, *, parse: bool = False, max_event_bytes: int = 1 << 20
) -> AsyncGenerator[bytes, None] | AsyncGenerator[Event, None]:
    """Send a request when the first event is asked for, and return the events of its response.

    The time-outs are those of the client: httpx waits 5 seconds for the next bytes, unless
    `timeout=httpx.Timeout(10, read=60)` or so is set.

    Args:
        client: an `httpx.AsyncClient` or `httpx2.AsyncClient`.
        request: what its `build_request` returns.
        parse: whether to return each event as an `Event`. If not, `bytes` are returned which
            together are the body; each item ends between two events.
        max_event_bytes: the most bytes of an event that are buffered. A longer one is returned in
            parts, or is a failure if it is to be parsed.

    Raises:
        UpstreamError: the upstream cannot be reached, does not send an event stream, or fails
            while it does; an incomplete event is dropped then.
        ConfigurationError: `client` is none of these.
    """
    failures = _failures_of(client)
    if parse:
        return _events(client, request, failures, max_event_bytes)
    return _blocks(client, request, failures, max_event_bytes)


async def _blocks(
    client: AsyncClient, request: Any, failures: _Failures, max_event_bytes: int
) -> AsyncGenerator[bytes, None]:
    splitter = Splitter(max_event_bytes)
    response = await _open(client, request, failures)
    try:
        async with aclosing(response.aiter_bytes()) as chunks:
            while (chunk := await _next(chunks, request, failures)) is not None:
                if pieces := splitter.feed(chunk):
                    yield b"".join([data for _, data in pieces])
            if tail := splitter.flush():
                yield tail
    finally:
        await response.aclose()


async def _events(
    client: AsyncClient, request: Any, failures: _Failures, max_event_bytes: int
) -> AsyncGenerator[Event, None]:
    splitter, parser = Splitter(max_event_bytes), EventParser()
    response = await _open(client, request, failures)
    try:
        async with aclosing(response.aiter_bytes()) as chunks:
            while (chunk := await _next(chunks, request, failures)) is not None:
                for kind, data in splitter.feed(chunk):
                    if kind in (Kind.PART, Kind.LAST_PART):
                        raise _error(request, f"has sent an event of over {max_event_bytes} bytes")
                    for event in parser.feed(data):
                        yield event
    finally:
        await response.aclose()


async def _open(client: AsyncClient, request: Any, failures: _Failures) -> Any:
    """Send the request, and return a response whose body is an event stream."""
    try:
        response = await client.send(request, stream=True)
    except failures.all as exc:
        raise _failed(request, exc, failures) from exc
    try:
        await _check(request, response, failures)
    except BaseException:
        await response.aclose()
        raise
    current_stream().note_upstream()
    return response


async def _check(request: Any, response: Any, failures: _Failures) -> None:
    """Raise unless the response is an event stream."""
    code = response.status_code
    if not 200 <= code < 300:  # noqa: PLR2004 - a success
        passes, retry = code in _PASSED_ON, response.headers.get("retry-after", "")
        is_delay = passes and retry.isascii() and retry.isdigit() and len(retry) <= _RETRY_DIGITS
        raise _error(
            request,
            f"has answered with status {code}",
            status_code=code if passes else status.HTTP_502_BAD_GATEWAY,
            headers={"Retry-After": retry} if is_delay else None,
            upstream_status=code,
            body=await _read_body(response, failures),
        )
    content_type = response.headers.get("content-type", _EVENT_STREAM)
    if content_type.partition(";")[0].strip().lower() != _EVENT_STREAM:
        raise _error(
            request,
            f"has answered with content-type {content_type[:80]!a}, needed is {_EVENT_STREAM}",
            upstream_status=code,
            body=await _read_body(response, failures),
        )


async def _read_body(response: Any, failures: _Failures) -> bytes:
    """Return the beginning of the body of an error."""
    body = b""
    with suppress(TimeoutError, *failures.all):
        async with asyncio.timeout(_BODY_SECONDS), aclosing(response.aiter_bytes()) as chunks:
            async for chunk in chunks:
                body += chunk[: _BODY_BYTES - len(body)]
                if len(body) >= _BODY_BYTES:
                    break
    return body


async def _next(chunks: Any, request: Any, failures: _Failures) -> bytes | None:
    """Return the next bytes of the body, `None` at its end."""
    try:
        chunk: bytes = await anext(chunks)
    except StopAsyncIteration:
        return None
    except failures.all as exc:
        raise _failed(request, exc, failures) from exc
    return chunk


def _failed(request: Any, exc: Exception, failures: _Failures) -> UpstreamError:
    is_timeout = isinstance(exc, failures.timeouts)
    return _error(
        request,
        f"has failed: {type(exc).__name__}",
        status_code=status.HTTP_504_GATEWAY_TIMEOUT if is_timeout else status.HTTP_502_BAD_GATEWAY,
    )


def _error(request: Any, reason: str, **details: Any) -> UpstreamError:
    # Only the host: a path or a query may contain a secret.
    return UpstreamError(f"the upstream {request.url.host} {reason}", **details)


def _failures_of(client: AsyncClient) -> _Failures:
    for base in type(client).__mro__:
        library = base.__module__.partition(".")[0]
        if library in _LIBRARIES and base.__name__ == "AsyncClient":
            module: Any = sys.modules[library]
            return _Failures((module.HTTPError, module.StreamError), module.TimeoutException)
    raise ConfigurationError("client", client, "an httpx.AsyncClient or httpx2.AsyncClient")
