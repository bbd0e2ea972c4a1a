"""What there is once: in an event loop, or in a process and in each that is forked from it.

Readers of channels share a connection, which belongs to a loop, and those in memory the memory. An
object that belongs to a loop is called in it, by `call_in`.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

Key = TypeVar("Key")
Value = TypeVar("Value")


class OncePerLoop(Generic[Value]):
    """Make one value for each event loop, and keep it until the loop is closed."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._made: dict[asyncio.AbstractEventLoop, Value] = {}

    def __call__(self) -> Value:
        """Return the value of the loop that runs, made now or before."""
        loop = asyncio.get_running_loop()
        made = self._made.get(loop)
        if made is None:
            for other in list(self._made):  # other threads have loops too
                if other.is_closed():
                    self._made.pop(other, None)
            made = self._made[loop] = self._make()
        return made

    def take(self) -> Value | None:
        """Return the value of the loop that runs, and forget it."""
        return self._made.pop(asyncio.get_running_loop(), None)


class OncePerProcess(Generic[Value]):
    """Make one value for this process, and another one for each that is forked from it."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._made: dict[int, Value] = {}

    def __call__(self) -> Value:
        """Return the value of this process, made now or before."""
        process = os.getpid()
        if process not in self._made:
            return self._made.setdefault(process, self._make())  # of two threads one is first
        return self._made[process]


class OncePerKey(Generic[Key, Value]):
    """Make one value for each key, and keep it as long as the key lives."""

    def __init__(self, make: Callable[[Key], Value]) -> None:
        self._make = make
        self._made: WeakKeyDictionary[Key, Value] = WeakKeyDictionary()

    def __call__(self, key: Key) -> Value:
        """Return the value of `key`, made now or before."""
        try:
            return self._made[key]
        except KeyError:
            made = self._made[key] = self._make(key)
            return made

    def items(self) -> Iterator[tuple[Key, Value]]:
        """Return the keys that live, and their values; other threads may add some meanwhile."""
        for reference in self._made.keyrefs():  # a list, made in one step
            key = reference()
            value = None if key is None else self._made.get(key)
            if key is not None and value is not None:
                yield key, value


class Once(Generic[Value]):
    """Make one value when it is used first, and keep it, also in processes that are forked."""

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._made: dict[None, Value] = {}

    def __call__(self) -> Value:
        """Return the value, made now or before."""
        try:
            return self._made[None]
        except KeyError:
            return self._made.setdefault(None, self._make())  # of two threads one is first

    def take(self) -> Value | None:
        """Return the value, `None` if it was not made, and forget it."""
        return self._made.pop(None, None)


class ValuesOfOwners(Generic[Key, Value]):
    """Keep a value of each owner, as long as the owner lives."""

    def __init__(self) -> None:
        self._values: WeakKeyDictionary[Key, Value] = WeakKeyDictionary()

    def set(self, owner: Key, value: Value) -> None:
        """Set the value of an owner."""
        self._values[owner] = value

    def values(self) -> list[Value]:
        """Return the values, in the order in which they were set first."""
        owners = (reference() for reference in self._values.keyrefs())  # a list, made in one step
        found = [self._values.get(owner) for owner in owners if owner is not None]
        return [value for value in found if value is not None]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, `None` if none does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def call_in(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: object) -> None:
    """Call a function in an event loop: at once in this one, never in a closed one."""
    if loop is running_loop():
        call(*args)
    else:
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(call, *args)
