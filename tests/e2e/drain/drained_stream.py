"""An `EventSource` by hand: httpx would need seconds to open a thousand."""

import asyncio
import json
import time

from sse_middleware import Event, EventParser


class DrainedStream:
    """One stream, read until its server ends it.

    Attributes:
        events: the events that were dispatched.
        whole: whether the response has ended completely, and was not cut.
        ended_at: the time of its end, 0 before.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.events: list[Event] = []
        self.whole = False
        self.ended_at = 0.0
        self._reader = reader
        self._writer = writer
        self._parser = EventParser()

    async def until_end(self) -> None:
        try:
            while line := await self._reader.readline():
                size = int(line, 16)
                chunk = await self._reader.readexactly(size + 2)
                self.events += self._parser.feed(chunk[:size])
                if not size:
                    self.whole = True
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it is not whole
        finally:
            self.ended_at = time.monotonic()
            self._writer.close()

    @property
    def numbers(self) -> list[int]:
        """The app's events."""
        return [int(event.data) for event in self.events if event.event == "message"]

    @property
    def last_event_id(self) -> str:
        return [event.id for event in self.events if event.id][-1]

    @property
    def reason(self) -> str:
        """The reason of its `complete`, or the name of another last event."""
        last = self.events[-1]
        return str(json.loads(last.data)["reason"]) if last.event == "complete" else last.event


async def opened(port: int, path: str) -> DrainedStream:
    """Open a stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET %b HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
        b"Cache-Control: no-cache\r\nUser-Agent: Mozilla/5.0\r\n\r\n" % path.encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in head, head
    return DrainedStream(reader, writer)
