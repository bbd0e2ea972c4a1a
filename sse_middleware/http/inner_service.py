"""Another instance of the middleware, in a service: the app passes its responses on.

If a service and the gateway in front of it both mark a route, the service numbers its events, sends
its heartbeats and keeps its streams. The gateway leaves such a response as it is: a second `start`
and second heartbeats would confuse its client, and ids of both would make it lose events.
"""

from collections.abc import Iterable
from typing import Final

from sse_middleware.protocol.event_ids import is_stream_id

_ANNOUNCED: Final = frozenset((b"x-stream-id", b"x-heartbeat-interval", b"x-silence-threshold"))
"""The headers that no other program sends together."""
_FEWEST_HEADERS: Final = len(_ANNOUNCED) + 1
"""Those, and the content type."""
_MAX_PATHS: Final = 1000


def is_of_inner_service(app_headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether the app passes on a marked stream of another instance of the middleware.

    An app that was written without the middleware may announce heartbeats too, by these names.
    Most streams have fewer headers, which need no search.
    """
    if type(app_headers) is list and len(app_headers) < _FEWEST_HEADERS:
        return False
    values = {name.lower(): value for name, value in app_headers}
    return values.keys() >= _ANNOUNCED and is_stream_id(values[b"x-stream-id"].decode("latin-1"))


class InnerServices:
    """The paths at which the app has passed on streams of another instance.

    An event id that this instance does not know may then be one of the other's.
    """

    def __init__(self) -> None:
        self._paths: dict[str, None] = {}

    def add(self, path: str) -> None:
        """Store a path; of too many, the oldest is dropped."""
        self._paths.pop(path, None)
        self._paths[path] = None
        if len(self._paths) > _MAX_PATHS:
            del self._paths[next(iter(self._paths))]

    def serve(self, path: str) -> bool:
        """Return whether the app has passed on a stream at a path."""
        return path in self._paths
