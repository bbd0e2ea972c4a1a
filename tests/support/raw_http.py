"""HTTP by hand, for connections that are cut, or not read, at a given byte."""

import socket

EVENTSOURCE = {
    "accept": "text/event-stream",
    "cache-control": "no-cache",
    "user-agent": "Mozilla/5.0",
}
"""The headers by which a browser's `EventSource` is known."""


def open_raw(port: int, path: str, *, eventsource: bool = True) -> socket.socket:
    """Send a GET request on a connection with a small receive buffer, and read nothing."""
    connection = socket.create_connection(("127.0.0.1", port), 60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    headers = EVENTSOURCE if eventsource else {}
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in headers.items())]
    connection.sendall("\r\n".join([*lines, "", ""]).encode())
    return connection
