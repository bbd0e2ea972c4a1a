"""Select the observer that computes prices, without importing genai-prices unless it is wanted."""

from sse_middleware.errors import ConfigurationError
from sse_middleware.observability.observer import Observer


def pricing(*, is_wanted: bool) -> tuple[Observer, ...]:
    """Return the observer that computes prices if it is wanted.

    Raises:
        ConfigurationError: genai-prices is not installed.
    """
    if not is_wanted:
        return ()
    try:
        from sse_middleware.observability.prices import Prices  # noqa: PLC0415 - takes half a second
    except ModuleNotFoundError as exc:
        allowed = "0 without the extra: pip install 'sse-middleware[usage]'"
        raise ConfigurationError("SSE_USAGE_COST", is_wanted, allowed) from exc
    return (Prices(),)  # type: ignore[abstract]  # the methods of the protocol do nothing
