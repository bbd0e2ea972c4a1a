"""The trace id of a span that begins a trace, when a handler has read it before the span exists.

OpenTelemetry's API starts a span either in the trace of its parent or in a trace with a new id, and
a parent that does not exist would be missing in every view of the trace. Its SDK takes new ids from
`Tracer.id_generator`, a public attribute. The tracer of this package therefore gets a generator
that returns the id which is already known, and otherwise asks the generator of the provider. No
other tracer is changed. A tracer without the attribute, of another SDK, is left alone.
"""

import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

_TRACE_ID: Final = re.compile(r"(?!0{32})[0-9a-f]{32}")
_HEADERS: Final = (b"traceparent", b"x-trace-id", b"x-request-id")

_T = TypeVar("_T")
_known: ContextVar[tuple[int, bool] | None] = ContextVar("sse_middleware_trace_id", default=None)
"""The id of the span that is being started, and whether a client has sent it."""


def is_trace_id(text: str) -> bool:
    """Return whether a text is the id of a trace, as W3C's Trace Context writes it."""
    return _TRACE_ID.fullmatch(text) is not None


class FirstTraceIds:
    """The id generator of one tracer: the id that is known, or a new one of the provider.

    Args:
        generator: an `IdGenerator` of OpenTelemetry's SDK.
    """

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        # Older SDKs have no `is_trace_id_random`; their own generator is random too.
        own_module = type(generator).__module__.startswith("opentelemetry.sdk.")
        self._is_random = own_module or self.is_trace_id_random()

    @classmethod
    def of(cls, tracer: Any) -> "FirstTraceIds | None":
        """Return the generator of a tracer, which may be new; `None` if it cannot have one."""
        generator = getattr(tracer, "id_generator", None)
        if generator is None or isinstance(generator, cls):
            return generator
        first_ids = cls(generator)
        try:
            tracer.id_generator = first_ids
        except AttributeError:
            return None
        return first_ids

    def new(self) -> str:
        """Return a new id, in the form of the provider's generator."""
        return f"{self._generator.generate_trace_id():032x}"

    def call(
        self, start: Callable[[], _T], trace_id: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> _T:
        """Return the result of `start`, a call that starts a span with no parent.

        Args:
            start: the call.
            trace_id: the id that the handler may have read. It is used if it has the form of a
                trace id; an id from a header of the client only if the ids of the provider are
                random too, since ids of other generators have a meaning.
            headers: those of the request.
        """
        is_received = any(
            name in _HEADERS and trace_id.encode() in value for name, value in headers
        )
        if (is_received and not self._is_random) or not is_trace_id(trace_id):
            return start()
        token = _known.set((int(trace_id, 16), is_received))
        try:
            return start()
        finally:
            _known.reset(token)

    def generate_trace_id(self) -> int:
        """Return the id that is known, or a new one."""
        known = _known.get()
        return int(self._generator.generate_trace_id()) if known is None else known[0]

    def generate_span_id(self) -> int:
        """Return a new id."""
        return int(self._generator.generate_span_id())

    def is_trace_id_random(self) -> bool:
        """Return whether the id has the flag for random ids of W3C's Trace Context, level 2."""
        known = _known.get()
        if known is not None and known[1]:
            return False
        is_random = getattr(self._generator, "is_trace_id_random", None)
        return is_random is not None and bool(is_random())
