"""What there is once in a process, whatever the number of middlewares in it.

Metrics of one name can stand in a registry once, so that all middlewares which count in it share
them.
"""

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Key = TypeVar("Key")
Value = TypeVar("Value")


class OncePerKey(Generic[Key, Value]):
    """Make one value for each key, and keep it as long as the key lives."""

    def __init__(self, make: Callable[[Key], Value]) -> None:
        self._make = make
        self._made: WeakKeyDictionary[Key, Value] = WeakKeyDictionary()

    def __call__(self, key: Key) -> Value:
        """Return the value of `key`, made now or before."""
        if key not in self._made:
            self._made[key] = self._make(key)
        return self._made[key]
