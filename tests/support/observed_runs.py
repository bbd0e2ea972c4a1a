"""Random apps on one request, with all that the app and its server observe."""

import asyncio
from typing import Any

from hypothesis import strategies as st
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support.asgi import EVENTSOURCE, body, http_scope

CHUNKS = [b"data: 1\n\n", b"word", b" word", b"data: half", b"\n", b"", b"\xff\x00", b"data: x\n"]

STARTS = st.fixed_dictionaries(
    {
        "type": st.just("http.response.start"),
        "status": st.sampled_from([200, 200, 200, 201, 204, 404, 500]),
        "headers": st.sampled_from(
            [
                [(b"content-type", b"text/event-stream")],
                [(b"Content-Type", b"text/event-stream; charset=utf-8"), (b"x", b"\xff")],
                [(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")],
                [(b"content-type", b"text/event-stream"), (b"content-length", b"7")],
                [(b"content-type", b"application/json")],
                [],
            ]
        ),
    },
    optional={"trailers": st.booleans()},
)
MESSAGES = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("http.response.body")},
        optional={"body": st.sampled_from(CHUNKS), "more_body": st.just(value=True)},
    ),
    st.fixed_dictionaries({"type": st.just("http.response.body"), "body": st.binary(max_size=9)}),
    st.sampled_from(
        [
            {"type": "http.response.trailers", "headers": [], "more_trailers": False},
            {"type": "http.response.debug", "info": {"x": 1}},
            {"type": "http.response.pathsend", "path": "/nowhere"},
            {"type": "http.response.zerocopysend", "file": 3, "more_body": True},
            {"type": "http.response.push", "path": "/x", "headers": []},
            {"type": "unheard.of"},
        ]
    ),
)
STEPS = st.one_of(
    MESSAGES,
    STARTS,
    st.sampled_from(["receive", "sleep", "yield", "task", "raise", "cancel", "listen"]),
)
EVENTS = st.sampled_from(["disconnect", "cancel", "refuse", "nothing"])


class Run:
    """One run of an app that follows a script, with all that both ends observe."""

    def __init__(self, script: list[Any], event: str, at: float) -> None:
        self.script = script
        self.seen: list[Any] = []
        self.objects: list[Any] = []
        self.received: list[Any] = []
        self._event = event
        self._at = at
        self._gone = asyncio.Event()
        self._refused = False
        self._parts = [
            {"type": "http.request", "body": b"a", "more_body": True},
            {"type": "http.request", "body": b"b", "more_body": False},
        ]

    def note(self, what: str, *details: Any) -> None:
        self.seen.append((round(asyncio.get_running_loop().time(), 6), what, *details))

    async def send(self, message: Message) -> None:
        self.objects.append(message)
        self.note("server gets", message["type"])
        if self._refused:
            raise OSError("gone")
        await asyncio.sleep(0.25 if message.get("body") == b"word" else 0)

    async def receive(self) -> Message:
        self.note("server is asked")
        if self._parts:
            message = self._parts.pop(0)
        else:
            await self._gone.wait()
            message = {"type": "http.disconnect"}
        self.received.append(message)
        return message

    async def app(self, _scope: Scope, receive: Receive, send: Send) -> None:
        tasks: list[asyncio.Task[None]] = []
        try:
            for number, step in enumerate(self.script):
                await self._perform(number, step, receive, send, tasks)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self.note("app ends", task.cancelling())
            for other in tasks:
                other.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _perform(
        self, number: int, step: Any, receive: Receive, send: Send, tasks: list[Any]
    ) -> None:
        if isinstance(step, dict):
            try:
                await send(step)
            except OSError as exc:
                self.note("app catches", repr(exc))
            self.note("app has sent", number)
        elif step in ("receive", "listen"):
            if step == "listen":
                tasks.append(asyncio.create_task(self._receive(receive)))
            else:
                await self._receive(receive)
        elif step == "task":
            tasks.append(asyncio.create_task(self._send_in_task(number, send)))
        elif step == "raise":
            raise ValueError(number)
        elif step == "cancel":
            asyncio.current_task().cancel()  # type: ignore[union-attr]
            try:
                await asyncio.sleep(0)
            finally:
                self.note("app is cancelled")
        else:
            await asyncio.sleep(0.5 if step == "sleep" else 0)

    async def _receive(self, receive: Receive) -> None:
        message = await receive()
        self.note("app gets", message["type"], any(message is other for other in self.received))

    async def _send_in_task(self, number: int, send: Send) -> None:
        for _ in range(2):
            await send(body(b"data: %d\n\n" % number))
            self.note("task has sent", number)
            await asyncio.sleep(0.1)

    async def observe(self, app: ASGIApp) -> list[Any]:
        """Run `app`, and return all that was observed."""
        task = asyncio.ensure_future(self._call(app))
        await asyncio.sleep(self._at)
        if self._event == "disconnect":
            self._gone.set()
        elif self._event == "cancel":
            task.cancel()
        elif self._event == "refuse":
            self._refused = True
        await asyncio.sleep(20)
        task.cancel()  # an app that waits for a disconnect which never comes
        await asyncio.gather(task, return_exceptions=True)
        return self.seen

    async def _call(self, app: ASGIApp) -> None:
        try:
            await app(http_scope(method="POST", headers=EVENTSOURCE), self.receive, self.send)
        except BaseException as exc:
            task = asyncio.current_task()
            assert task is not None
            self.note("server catches", repr(exc), task.cancelling())
            raise
        self.note("app has returned")


def is_same(ours: Any, bare: Any) -> bool:
    """Return whether a message is the same object, or a start that has our headers in addition."""
    if ours is bare:
        return True
    headers = bare["headers"]
    assert ours["headers"][: len(headers)] == headers
    return bool({**ours, "headers": headers} == bare)
