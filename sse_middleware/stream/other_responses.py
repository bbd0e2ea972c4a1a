"""Warn of marked endpoints whose responses stream something else than events.

Such a response is passed on unchanged, without heartbeats and resuming, and nothing else shows it.
The first responses of a middleware are checked, so that later ones cost one comparison.
"""

import logging
from typing import TYPE_CHECKING, Final

from starlette.types import Message, Scope

from sse_middleware.http.response_head import has_content_length
from sse_middleware.http.routes import route_name

if TYPE_CHECKING:
    from sse_middleware.stream.context import Context

logger = logging.getLogger("sse_middleware")

_CHECKED_RESPONSES: Final = 1000
_SUCCESS: Final = range(200, 300)
_WITH_BODY: Final = ("GET", "POST", "PUT", "PATCH", "QUERY")
_NO_CONTENT: Final = 204


class OtherResponses:
    """The check of responses that are no event streams.

    Attributes:
        unchecked: how many responses will be checked.
    """

    def __init__(self) -> None:
        self.unchecked = _CHECKED_RESPONSES

    def check(self, context: "Context", scope: Scope, path: str, start: Message) -> None:
        """Log a warning if the body of a marked endpoint is streamed, which has no length.

        Args:
            context: the objects that all requests of one middleware share.
            scope: the scope of the request, after the app has routed it.
            path: the `app_path` before that.
            start: the response start.
        """
        self.unchecked -= 1
        headers = start.get("headers") or ()
        if has_content_length(headers):  # most of them
            return
        status = start["status"]
        if status not in _SUCCESS or status == _NO_CONTENT or scope.get("method") not in _WITH_BODY:
            return
        mark = context.get_mark(scope, path)
        if mark is None or mark.overrides.get("enabled") is False:
            return
        route = route_name(scope, mark)
        if context.is_first_warning("content-type", route):
            found = (value for name, value in headers if name.lower() == b"content-type")
            logger.warning(
                "route %s is marked, but has streamed a response that is no event stream (content "
                "type: %s): it is passed on unchanged, without heartbeats and resuming. Send "
                'text/event-stream (in Starlette: media_type="text/event-stream"), or remove the '
                "mark. This is logged once per route",
                route,
                next(found, b"none").decode("latin-1"),
            )
