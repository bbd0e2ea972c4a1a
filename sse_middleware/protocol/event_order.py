"""The order of the types of events in a stream, as the mark of its endpoint declares it."""

from collections.abc import Sequence

from sse_middleware.errors import ConfigurationError

_ALLOWED = "two or more names of events, each once, such as ('token', 'done')"


def validate_order(order: Sequence[str]) -> tuple[str, ...]:
    """Return the names of events in their order.

    Raises:
        ConfigurationError: they are fewer than two, or one is repeated or no text.
    """
    names = () if isinstance(order, str) else tuple(order)
    if len(names) < 2 or len(set(names)) < len(names):  # noqa: PLR2004 - fewer have no order
        raise ConfigurationError("order", order, _ALLOWED)
    if not all(isinstance(name, str) and name for name in names):
        raise ConfigurationError("order", order, _ALLOWED)
    return names


class OrderCheck:
    """Check the order of the events of one stream.

    Each type may occur any number of times or not at all, but not after a type that is later in the
    order. Other types may occur anywhere.

    Args:
        order: the names of the types.
    """

    __slots__ = ("_latest", "_order")

    def __init__(self, order: Sequence[str]) -> None:
        self._order = order
        self._latest = 0

    def add(self, name: str) -> str:
        """Add an event; return the name of the type that it must not follow, `""` if it may."""
        if name not in self._order:
            return ""
        position = self._order.index(name)
        if position < self._latest:
            return self._order[self._latest]
        self._latest = position
        return ""
