"""What a mark demands of the events of its endpoint: a transform, and an order."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from sse_middleware.errors import ConfigurationError
from sse_middleware.protocol.event_order import validate_order
from sse_middleware.protocol.parser import Event

Transformed: TypeAlias = Event | Iterable[Event] | None
Transform: TypeAlias = Callable[[Event], Transformed | Awaitable[Transformed]]
"""Returns the events that are sent in place of one."""
TransformOption: TypeAlias = Transform | type[Transform]
"""The same, or a class; each stream has an object of it then, whose `__call__` is the function."""


class EventRules(NamedTuple):
    """The rules for the events of one endpoint.

    Attributes:
        transform: is called with each event; `None` for no function.
        order: the names of events in their order, empty for any order.
    """

    transform: TransformOption | None
    order: tuple[str, ...]

    @classmethod
    def validated(
        cls, transform: TransformOption | None, order: Sequence[str] | None
    ) -> "EventRules | None":
        """Return the rules, `None` if there are none.

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        if transform is None and order is None:
            return None
        if transform is not None and not callable(transform):
            raise ConfigurationError("transform", transform, "a function of an Event, or a class")
        return cls(transform, () if order is None else validate_order(order))

    def new_transform(self) -> Transform | None:
        """Return the function for one stream."""
        return self.transform() if isinstance(self.transform, type) else self.transform
