"""The interface of the observers of streams, such as metrics and logs.

An observer is notified when a stream opens, every ten seconds or so and at the end, but not of each
event. The record has all the numbers; an observer that counts remembers what it has counted.

Log handlers, log record factories and metrics belong to the app, and may raise. Neither the app
that writes a stream nor another observer is concerned by that: the classes of observers are
`guarded`.
"""

import functools
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from sse_middleware._once import OncePerProcess
from sse_middleware.observability.stream_record import StreamRecord

logger = logging.getLogger("sse_middleware")

_failed = OncePerProcess(set[str])
"""The methods of observers that have failed, and are not logged again."""


class Observer(Protocol):
    """An observer of streams. No method may wait, or block."""

    def opened(self, record: StreamRecord) -> None:
        """A response is a stream, and has started."""

    def progressed(self, record: StreamRecord) -> None:
        """A stream is still open; its counters have grown since the last call."""

    def stalled(self, record: StreamRecord, seconds: float) -> None:
        """A client that did not read has blocked a write for `seconds`."""

    def ended(self, record: StreamRecord) -> None:
        """A stream has ended, as `record.outcome` describes; called once."""

    def resumed(self, route: str, result: str, replayed: int) -> None:
        """A request with an event id of ours has its response.

        Args:
            route: the bounded name of the stream's route.
            result: `resumed`, `truncated`, `gone`, `ended`, `cancelled` or `unavailable`; or, for a
                request that is attached to the stream of another one, `coalesced` or `hit`.
            replayed: the number of missed events that the client is sent.
        """

    def lingering(self, more: int) -> None:
        """One stream more lingers (1), or one less (-1)."""

    def rejected(self, route: str, reason: str) -> None:
        """A stream has been rejected.

        Args:
            route: the bounded name of its route.
            reason: the limit that is reached (`process`, `client`, `rate` or `readers`), or
                `shutdown`.
        """

    def on_end_failed(self, route: str) -> None:
        """The function `on_end` of a mark has failed; `route` is the bounded name of its route."""

    def store_failed(self, operation: str) -> None:
        """The store is unavailable; `operation` is one of a few words."""

    def health_changed(self, component: str, name: str, state: str, more: int) -> None:
        """One component more (1) or less (-1) of the access to the store is in a state.

        Args:
            component: `connection`, `circuit` or `listener`.
            name: its purpose: `store`, `channels` or `limits`; of a circuit, the operation.
            state: `open` for a connection and a circuit, `up` or `down` for a listener.
            more: 1 or -1.
        """

    def store_flushed(self, seconds: float) -> None:
        """Events have been written to the store in `seconds`."""


ObserverClass = TypeVar("ObserverClass", bound=type[Observer])


def guarded(observer_class: ObserverClass) -> ObserverClass:
    """Have the methods of an observer log their exceptions, the first one of each method."""
    for name, method in tuple(vars(observer_class).items()):
        if name in vars(Observer) and not name.startswith("_"):
            setattr(observer_class, name, _guarded(method))
    return observer_class


def _guarded(method: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(method)
    def call(*args: Any) -> None:
        try:
            method(*args)
        except Exception as exc:  # noqa: BLE001 - of a log handler or of a metric, for example
            _log_failure(method.__qualname__, exc)

    return call


def _log_failure(name: str, exc: Exception) -> None:
    failed = _failed()
    if name in failed:
        return
    failed.add(name)
    with suppress(Exception):  # the log itself may be what fails
        logger.warning(
            "%s has failed: %s: %s. Streams continue, but metrics or logs of them may be missing. "
            "This is logged once.",
            name,
            type(exc).__name__,
            exc,
        )
