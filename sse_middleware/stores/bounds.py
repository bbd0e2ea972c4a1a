"""The bounds of a store: the numbers with which it is created."""

from collections.abc import Mapping

from sse_middleware.errors import ConfigurationError


def check_bounds(bounds: Mapping[str, object]) -> None:
    """Check that each bound is a number, 0 or more.

    Args:
        bounds: their values, by name.

    Raises:
        ConfigurationError: one is not.
    """
    for name, value in bounds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise ConfigurationError(name, value, "a number, 0 or more")
