"""The streams for the doctor, below a layer that compresses them, one path for each coding."""

from typing import Final

from backports import zstd
from brotli_asgi import BrotliMiddleware
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.e2e.doctor.app import app as streams

_FLUSH_BLOCK: Final = 1  # of `ZstdCompressor`, as a literal


class ZstdMiddleware:
    """Compresses each part of a response with Zstandard, and flushes it.

    Args:
        app: the app inside of it.
        coding: the value of `Content-Encoding`, for responses whose coding is not the one it says.
    """

    def __init__(self, app: ASGIApp, coding: str = "zstd") -> None:
        self._app = app
        self._coding = coding.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        compressor = zstd.ZstdCompressor()

        async def send_compressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                coding = (b"content-encoding", self._coding)
                message = {**message, "headers": [*message["headers"], coding]}
            elif message["type"] == "http.response.body":
                is_last = not message.get("more_body")
                data = compressor.compress(message["body"])
                data += compressor.flush() if is_last else compressor.flush(_FLUSH_BLOCK)
                message = {**message, "body": data}
            await send(message)

        await self._app(scope, receive, send_compressed)


app = Starlette(
    routes=[
        Mount("/br", BrotliMiddleware(streams)),
        Mount("/zstd", ZstdMiddleware(streams)),
        Mount("/other", ZstdMiddleware(streams, "x-own")),
        Mount("/wrong", ZstdMiddleware(streams, "br")),
    ]
)
