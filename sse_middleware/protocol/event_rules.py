"""The rules of a mark for the events of its endpoint: a transform, an order, a JSON document."""

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
Collect: TypeAlias = Callable[[list[Event]], object]
"""Returns what is sent as JSON in place of the events. If it is awaitable, it is awaited."""


class EventRules(NamedTuple):
    """The rules for the events of one endpoint.

    Attributes:
        transform: is called with each event; `None` for no function.
        order: the names of events in their order, empty for any order.
        collect: makes one JSON document for clients that accept no event stream; `None` if they get
            the events too.
    """

    transform: TransformOption | None
    order: tuple[str, ...]
    collect: Collect | None

    @classmethod
    def validated(
        cls,
        transform: TransformOption | None,
        order: Sequence[str] | None,
        collect: Collect | None,
    ) -> "EventRules | None":
        """Return the rules, `None` if there are none.

        Raises:
            ConfigurationError: an argument is not allowed.
        """
        if transform is None and order is None and collect is None:
            return None
        if transform is not None and not callable(transform):
            raise ConfigurationError("transform", transform, "a function of an Event, or a class")
        if collect is not None and not callable(collect):
            raise ConfigurationError("collect", collect, "a function of the list of events")
        return cls(transform, () if order is None else validate_order(order), collect)

    @property
    def changes_events(self) -> bool:
        """Whether the events of an app are transformed or checked."""
        return self.transform is not None or bool(self.order)

    def new_transform(self) -> Transform | None:
        """Return the function for one stream."""
        return self.transform() if isinstance(self.transform, type) else self.transform
