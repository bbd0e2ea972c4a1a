"""Visits of streams as the doctor records them, without a server."""

import json
from typing import Any

from sse_middleware.doctor.visit import Chunk, Ending, Visit

STREAM_ID = "0123456789abcdef" * 2
SECRET = "abcdefghijklmnopqrstuv"
HEADERS = {
    "content-type": "text/event-stream",
    "cache-control": "no-cache",
    "transfer-encoding": "chunked",
    "x-accel-buffering": "no",
}
MARKED = {
    **HEADERS,
    "x-stream-id": STREAM_ID,
    "x-trace-id": "a" * 32,
    "x-heartbeat-interval": "5",
    "x-stream-max-seconds": "60",
}

Body = list[tuple[float, bytes]]


def visit_of(
    *chunks: tuple[float, bytes],
    headers: dict[str, str] | None = None,
    without: str = "",
    **fields: Any,
) -> Visit:
    """Return a visit with these chunks; it is complete a moment after the last one."""
    known = {**(HEADERS if headers is None else headers)}
    known.pop(without, None)
    last = chunks[-1][0] if chunks else 0.0
    found = {"status": 200, "ended_at": last, "head_at": 0.0, "ending": Ending.COMPLETE, **fields}
    return Visit(
        headers=tuple(known.items()), chunks=tuple(Chunk(*chunk) for chunk in chunks), **found
    )


def frame(number: int, data: str = "", *, secret: str = SECRET) -> bytes:
    """Return an event with an id of the middleware."""
    return f"data: {data or number}\nid: {secret}-{number}\n\n".encode()


def control(name: str, **data: object) -> bytes:
    """Return a control event."""
    return f"event: {name}\ndata: {json.dumps({'stream_id': STREAM_ID, **data})}\n\n".encode()


START = control("start", resumed=False)
RESUMED = control("start", resumed=True)


def heartbeat(uptime: float) -> bytes:
    return control("heartbeat", uptime_seconds=uptime)


def complete(duration: float, total: int = 3) -> bytes:
    return control("complete", reason="finished", duration=duration, total_chunks=total)
