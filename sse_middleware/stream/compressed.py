"""Send a client an event stream in a content coding.

The object is the `send` of a connection, in place of the server's. The app's bytes are counted and
kept before they are coded: a client that reconnects gets a body with an encoder of its own, which
may also have another coding.
"""

from typing import Final

from starlette.types import Message, Send

from sse_middleware.http.content_coding import ENCODERS, Encoder, choose_coding
from sse_middleware.http.request import SSERequest
from sse_middleware.http.response_head import BODY

_CODING: Final = b"content-encoding"
_VARY: Final = (b"vary", b"Accept-Encoding")


class CompressedResponse:
    """The response to one client that accepts a coding.

    Args:
        send: the server's `send`.
        coding: the name of the coding, `""` for none.
    """

    def __init__(self, send: Send, coding: str) -> None:
        self._send = send
        self._coding = coding
        self._encoder: Encoder | None = None

    async def send(self, message: Message) -> None:
        """Send a message of the stream, with its body in the coding."""
        if message["type"] == "http.response.start":
            message = self._start(message)
        elif message["type"] == BODY and self._encoder is not None:
            body = message.get("body", b"")
            # An empty body is not flushed: each flush costs bytes.
            coded = self._encoder.flush(body) if body else b""
            if not message.get("more_body"):
                coded += self._encoder.finish()
                self._encoder = None
            message = {**message, "body": coded}
        await self._send(message)

    def _start(self, start: Message) -> Message:
        headers = [*start["headers"], _VARY]
        # An app that sends `Content-Encoding: identity` wants no coding.
        if self._coding and all(name.lower() != _CODING for name, _ in headers):
            self._encoder = ENCODERS[self._coding]()
            headers.append((_CODING, self._coding.encode()))
        return {**start, "headers": headers}


def compressed(send: Send, request: SSERequest, codings: tuple[str, ...]) -> Send:
    """Return a `send` that uses the first of some codings that the client accepts."""
    if not codings:
        return send
    coding = choose_coding(request.headers.get(b"accept-encoding", b""), codings)
    return CompressedResponse(send, coding).send
