"""A client that sends many requests to one server at once, and keeps the responses."""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx2 as httpx

from sse_middleware import Event, EventParser
from tests.e2e.matrix import notes
from tests.support.servers import Server
from tests.support.waiting import HANG_SECONDS

_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and slow to make for each client
HELD_SECONDS = 20.0
"""The time after which a part of a response that has not arrived counts as held back."""


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        path: with a query, whose `key` is the name under which the app notes its steps.
        release: the path that lets the app continue, once `released_by` has arrived.
        released_by: the headers, or the first bytes of the body.
    """

    path: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    release: str = ""
    released_by: Literal["headers", "body"] = "body"

    @property
    def key(self) -> str:
        return str(httpx.QueryParams(self.path.partition("?")[2]).get("key", ""))


@dataclass
class Answer:
    """The response to a request.

    Attributes:
        error: the exception that has cut the response; empty for a complete one.
        is_held: whether the part that releases the app has not arrived by itself.
        ended_after: the seconds until its end.
        noted: the steps that the app has noted.
    """

    status: int = 0
    http_version: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    error: str = ""
    is_held: bool = False
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
    """Send requests to `server`, each on a connection of its own.

    Args:
        server: the server.
        notes_in: the folder in which the app notes its steps.
        http2: whether to use HTTP/2, without TLS, by prior knowledge.
        headers: those of all requests.
    """

    def __init__(
        self,
        server: Server,
        notes_in: Path,
        *,
        http2: bool = False,
        headers: dict[str, str] | None = None,
    ) -> None:
        self._server = server
        self._notes_in = notes_in
        self._http2 = http2
        self._headers = headers or {}

    def _connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            trust_env=False,  # pytest changes the environment meanwhile
            base_url=self._server.url,
            headers=self._headers,
            http1=not self._http2,
            http2=self._http2,
            verify=_TLS,
            timeout=HANG_SECONDS,
        )

    async def ask(
        self,
        ask: Ask,
        *,
        leave_after: bytes | None = None,
        requests: int = 1,
        answer: Answer | None = None,
    ) -> Answer:
        """Read the response to its end, or disconnect once `leave_after` is in its body.

        Args:
            ask: the request.
            leave_after: as above.
            requests: how many requests with this key the app is to leave before its steps are
                read; 0 for those that it has noted by then.
            answer: the object that gets the response, part by part.
        """
        answer = Answer() if answer is None else answer
        began = time.monotonic()
        arrived = {"headers": asyncio.Event(), "body": asyncio.Event()}
        releasing = asyncio.ensure_future(self._release(ask, arrived[ask.released_by], answer))
        try:
            async with (
                asyncio.timeout(HANG_SECONDS),
                self._connect() as client,
                client.stream(
                    ask.method, ask.path, headers=ask.headers, content=ask.body or None
                ) as response,
            ):
                arrived["headers"].set()
                answer.status = response.status_code
                answer.http_version = response.http_version
                answer.headers = list(response.headers.multi_items())
                async for chunk in response.aiter_raw():
                    arrived["body"].set()
                    answer.body += chunk
                    if leave_after is not None and leave_after in answer.body:
                        break
        except (httpx.HTTPError, TimeoutError) as exc:
            answer.error = type(exc).__name__
        answer.ended_after = time.monotonic() - began
        await releasing
        if ask.key:
            answer.noted = await self.noted(ask.key, requests)
        return answer

    async def _release(self, ask: Ask, arrived: asyncio.Event, answer: Answer) -> None:
        if not ask.release:
            return
        try:
            async with asyncio.timeout(HELD_SECONDS):
                await arrived.wait()
        except TimeoutError:
            answer.is_held = True
        async with self._connect() as client:
            await client.get(ask.release, params={"key": ask.key})

    async def until_all_run(self, workers: int) -> None:
        """Wait until each worker has answered: one that gets a signal before may ignore it."""
        found = set[bytes]()
        async with asyncio.timeout(HANG_SECONDS):
            while len(found) < workers:
                async with self._connect() as client:
                    found.add((await client.get("/pid")).content)

    async def noted(self, key: str, requests: int = 1) -> list[str]:
        """Return the steps that the app has noted, once it has left the requests."""
        deadline = time.monotonic() + HANG_SECONDS
        while True:
            noted = notes.read(self._notes_in, key)
            left = sum(step.startswith("app ") for step in noted)
            if left >= requests or time.monotonic() > deadline:
                return noted
            await asyncio.sleep(0.05)

    async def talk(self, key: str) -> list[str]:
        """Use a WebSocket, and return its echoes and the steps that the app has noted."""
        from websockets.asyncio.client import connect  # noqa: PLC0415 - an extra
        from websockets.exceptions import WebSocketException  # noqa: PLC0415

        echoes: list[str] = []
        try:
            url = f"ws://127.0.0.1:{self._server.port}/echo?key={key}"
            async with connect(url, proxy=None, additional_headers=self._headers) as websocket:
                for text in ("one", "two" * 10_000):
                    await websocket.send(text)
                    echoes.append(str(await websocket.recv()))
                await websocket.close(4001)
        except (WebSocketException, OSError) as exc:
            return [f"{type(exc).__name__}: {exc}"]
        return echoes + await self.noted(key)

    async def reset(self, endless: Ask, whole: Ask) -> tuple[list[str], bytes]:
        """Open two HTTP/2 streams on one connection and reset the `endless` one, as pages do.

        Returns:
            The steps that the app has noted for the endless one, and the body of the whole one.
        """
        import h2.config  # noqa: PLC0415 - an extra
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
                    *(self._headers | ask.headers).items(),
                ],
                end_stream=True,
            )
        bodies = {1: b"", 3: b""}
        is_reset, is_whole = False, False
        try:
            async with asyncio.timeout(HANG_SECONDS):
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
                        writer.write(connection.data_to_send())  # the other may be whole by now
            return await self.noted(endless.key), bodies[3]
        finally:
            writer.close()
