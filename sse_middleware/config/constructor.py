"""Validate the constructor arguments of the middleware that are no settings."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sse_middleware.errors import ConfigurationError

logger = logging.getLogger("sse_middleware")

_STORE_METHODS: Final = ("create", "find", "find_named", "follow", "close")
_FUNCTIONS: Final = ("identify", "authorize_resume", "expires_at", "rollout")
_METRICS_DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"


def check_arguments(app: object, arguments: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Check the arguments, and that the directory of the metrics of several processes exists.

    Args:
        app: the app.
        arguments: of the constructor, by name; those that are settings are checked elsewhere.
        environ: the variables.

    Raises:
        ConfigurationError: one is not allowed.
    """
    if not callable(app):
        raise ConfigurationError("app", app, "an ASGI app, such as FastAPI()")
    marks, store, registry = (arguments[name] for name in ("marks", "store", "registry"))
    if registry is not None and not hasattr(registry, "collect"):
        raise ConfigurationError("registry", registry, "a CollectorRegistry of prometheus_client")
    if marks is not None and not isinstance(marks, Mapping):
        allowed = 'a mapping such as {"/chat/*": streaming()}; for paths alone, use mark="/chat/*"'
        raise ConfigurationError("marks", marks, allowed)
    for name in _FUNCTIONS:
        if arguments[name] is not None and not callable(arguments[name]):
            raise ConfigurationError(name, arguments[name], "a function, or None")
    if store is not None:
        _check_store(store, arguments.get("redis_url"))
    directory = environ.get(_METRICS_DIRECTORY) or environ.get(_METRICS_DIRECTORY.lower())
    if directory and not Path(directory).is_dir():
        allowed = "an existing directory; create it, empty, before the server starts"
        raise ConfigurationError(_METRICS_DIRECTORY, directory, allowed)


def _check_store(store: Any, redis_url: object) -> None:
    is_class = isinstance(store, type)
    if is_class or not all(hasattr(store, name) for name in _STORE_METHODS):
        example = f"{store.__name__}(...)" if is_class else "RedisStore(...)"
        allowed = f"an instance, such as {example}; for a Redis, redis_url is enough"
        raise ConfigurationError("store", store, allowed)
    if redis_url and not store.is_shared:
        logger.warning(
            "Streams are kept in `store`, in this process alone; the Redis of `redis_url` is used "
            "for channels and limits only. Leave out `store` to keep streams in Redis too."
        )
