"""Parts of a body that an app sends as files, by the extensions of ASGI for its server.

The middleware reads the files of a marked stream itself: they contain events, whose order with the
other parts of the body has to be kept, and between which its own events are written.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Final

from starlette.types import Message

PATHSEND: Final = "http.response.pathsend"
ZEROCOPYSEND: Final = "http.response.zerocopysend"
_CHUNK_BYTES: Final = 1 << 16


async def file_chunks(message: Message) -> AsyncGenerator[bytes, None]:
    """Return the content of the file that a message names, in chunks.

    https://asgi.readthedocs.io/en/latest/extensions.html: "Path Send" has the path of a whole file,
    "Zero Copy Send" a file that is open, where to begin and how many bytes to send.
    """
    if message["type"] == PATHSEND:
        # Opened here, not in a thread: a cancellation would leave the file open.
        with open(message["path"], "rb") as file:  # noqa: ASYNC230, PTH123
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield chunk
        return
    given = message["file"]
    descriptor = given if isinstance(given, int) else given.fileno()
    offset, left = message.get("offset"), message.get("count")
    if offset is not None:
        os.lseek(descriptor, offset, os.SEEK_SET)
    while left is None or left > 0:
        size = _CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES)
        chunk = await asyncio.to_thread(os.read, descriptor, size)
        if not chunk:
            return
        yield chunk
        left = None if left is None else left - len(chunk)
