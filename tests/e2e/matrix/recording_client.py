"""A client that asks one server many things at once, and keeps what it got."""

import asyncio
import ssl
import time
from dataclasses import dataclass, field

import httpx2 as httpx

from sse_middleware import Event, EventParser
from tests.support.servers import Server

EVENTSOURCE = {"accept": "text/event-stream", "cache-control": "no-cache"}

_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and slow to make for each client
_PATIENCE_SECONDS = 15


@dataclass(frozen=True)
class Ask:
    """One request. The `key` in its query is what the app notes things under."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def key(self) -> str:
        return str(httpx.QueryParams(self.path.partition("?")[2]).get("key", ""))


@dataclass
class Answer:
    """What a client has got.

    Attributes:
        error: how the response was cut; empty for a whole one.
        headers_after: the seconds until the headers were there.
        body_after: the seconds until the first bytes of the body were there.
        ended_after: the seconds until its end.
        noted: what the app has noted, in the end.
    """

    status: int = 0
    http_version: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    error: str = ""
    headers_after: float = 0.0
    body_after: float = 0.0
    ended_after: float = 0.0
    noted: list[str] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        return EventParser().feed(self.body)

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events]

    @property
    def messages(self) -> list[str]:
        """The data of the app's events."""
        return [event.data for event in self.events if event.event == "message"]

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


class RecordingClient:
    """Ask `server`, each request on a connection of its own.

    Args:
        server: where to.
        http2: whether to speak HTTP/2, without TLS, by prior knowledge.
        state: the path that tells what was noted.
    """

    def __init__(self, server: Server, *, http2: bool = False, state: str = "/state") -> None:
        self._server = server
        self._http2 = http2
        self._state = state

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            trust_env=False,  # pytest writes a variable meanwhile
            base_url=self._server.url,
            http1=not self._http2,
            http2=self._http2,
            verify=_TLS,
            timeout=_PATIENCE_SECONDS,
        )

    async def ask(self, ask: Ask, *, leave_after: bytes | None = None) -> Answer:
        """Read the answer to its end, or leave when `leave_after` is in its body."""
        answer = Answer()
        began = time.monotonic()
        try:
            async with (
                asyncio.timeout(_PATIENCE_SECONDS),
                self._connect() as client,
                client.stream(
                    ask.method, ask.path, headers=ask.headers, content=ask.body or None
                ) as response,
            ):
                answer.headers_after = time.monotonic() - began
                answer.status = response.status_code
                answer.http_version = response.http_version
                answer.headers = list(response.headers.multi_items())
                async for chunk in response.aiter_raw():
                    answer.body_after = answer.body_after or time.monotonic() - began
                    answer.body += chunk
                    if leave_after is not None and leave_after in answer.body:
                        break
        except (httpx.HTTPError, TimeoutError) as exc:
            answer.error = type(exc).__name__
        answer.ended_after = time.monotonic() - began
        if ask.key:
            answer.noted = await self.noted(ask.key)
        return answer

    async def noted(self, key: str) -> list[str]:
        """Return what the app has noted, once it has left the request or 5 s have gone."""
        deadline = time.monotonic() + 5
        noted: list[str] = []
        while time.monotonic() < deadline and not any(what.startswith("app ") for what in noted):
            await asyncio.sleep(0.1)  # a process apart has no event to wait for
            noted = await self._noted_now(key)
        # Asking has collected a generator that was left behind; now it has noted that, too.
        return await self._noted_now(key)

    async def _noted_now(self, key: str) -> list[str]:
        async with self._connect() as client:
            noted: list[str] = (await client.get(self._state, params={"key": key})).json()
            return noted

    async def talk(self, key: str) -> list[str]:
        """Let a WebSocket echo, and return what it said and what the app has noted."""
        from websockets.asyncio.client import connect  # noqa: PLC0415 - not everywhere
        from websockets.exceptions import WebSocketException  # noqa: PLC0415

        said: list[str] = []
        try:
            url = f"ws://127.0.0.1:{self._server.port}/echo?key={key}"
            async with connect(url, proxy=None) as websocket:
                for text in ("one", "two" * 10_000):
                    await websocket.send(text)
                    said.append(str(await websocket.recv()))
                await websocket.close(4001)
        except (WebSocketException, OSError) as exc:
            return [f"{type(exc).__name__}: {exc}"]
        return said + await self.noted(key)

    async def reset(self, endless: Ask, whole: Ask) -> tuple[list[str], bytes]:
        """Open two HTTP/2 streams on one connection and reset the `endless` one, as pages do.

        Returns:
            What the app has noted of the endless one, and the body of the whole one.
        """
        import h2.config  # noqa: PLC0415 - not everywhere
        import h2.connection  # noqa: PLC0415
        import h2.errors  # noqa: PLC0415
        import h2.events  # noqa: PLC0415

        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        for number, ask in ((1, endless), (3, whole)):
            connection.send_headers(
                number,
                [
                    (":method", ask.method),
                    (":scheme", "http"),
                    (":authority", "localhost"),
                    (":path", ask.path),
                    *ask.headers.items(),
                ],
                end_stream=True,
            )
        bodies = {1: b"", 3: b""}
        is_reset, is_whole = False, False
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while not (is_reset and is_whole):
                    writer.write(connection.data_to_send())
                    for event in connection.receive_data(await reader.read(65536)):
                        if isinstance(event, h2.events.DataReceived):
                            bodies[event.stream_id] += event.data
                        elif isinstance(event, h2.events.StreamEnded):
                            is_whole = is_whole or event.stream_id == 3
                    if not is_reset and bodies[1].count(b"data:") >= 2:
                        is_reset = True
                        connection.reset_stream(1, h2.errors.ErrorCodes.CANCEL)
            return await self.noted(endless.key), bodies[3]
        finally:
            writer.close()
