"""The health of the connections to a store, as observers count it."""

from collections.abc import Sequence

from sse_middleware.observability.observer import Observer


class Health:
    """The state of one component: observers learn when it changes.

    Args:
        observers: are notified.
        component: what it is, as `Observer.health_changed` lists.
        name: its name, one of a few words.
    """

    __slots__ = ("_component", "_name", "_observers", "_state")

    def __init__(self, observers: Sequence[Observer], component: str, name: str) -> None:
        self._observers = observers
        self._component = component
        self._name = name
        self._state = ""

    def set(self, state: str) -> None:
        """Set the state, `""` for a component that does not exist any more."""
        before, self._state = self._state, state
        if state != before:
            for observer in self._observers:
                if before:
                    observer.health_changed(self._component, self._name, before, -1)
                if state:
                    observer.health_changed(self._component, self._name, state, 1)
