"""Routes: the bounded name of where a request went, never its raw path."""

from collections.abc import Mapping
from typing import Any

UNMATCHED = "unmatched"


def route_name(scope: Mapping[str, Any]) -> str:
    """Return the template of the route that an app has found for `scope`, else `unmatched`.

    To be asked behind the app's routing; Starlette and FastAPI leave their route in the scope.
    """
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else UNMATCHED
