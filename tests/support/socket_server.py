"""A server by hand, whose responses a test determines to the byte."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count

from tests.support.waiting import HANG_SECONDS


@contextmanager
def answering(respond: Callable[[bytes, int], bytes]) -> Iterator[int]:
    """Answer one request on each connection, in a thread, and yield the port.

    Args:
        respond: returns the response to the bytes of a request and to its number, from 0 on.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                for number in count():
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(respond(connection.recv(65536), number))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            thread.join(HANG_SECONDS)
