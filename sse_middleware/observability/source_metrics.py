"""Metrics of the additions for back ends, which are counted at the end of a stream."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter

from sse_middleware.observability.source_record import ModelCall, SourceRecord

_MAX_MODELS: Final = 100
"""The most names of models that are labels; a client may select the model."""
_LONGEST_MODEL: Final = 100
_OTHER: Final = "other"


class SourceMetrics:
    """The metrics in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._fallbacks = Counter(
            "sse_fallbacks",
            "Streams that another source than the first one has answered.",
            ("route", "source"),
            registry=registry,
        )

        self._transform_errors = Counter(
            "sse_transform_errors",
            "Events that were dropped because they could not be transformed.",
            ("route",),
            registry=registry,
        )
        self._order_violations = Counter(
            "sse_order_violations",
            "Events that were not in the order of their mark.",
            ("route",),
            registry=registry,
        )

        self._tokens = Counter(
            "sse_tokens",
            "Tokens that providers have reported, by kind: input, cached_input, output.",
            ("route", "model", "kind"),
            registry=registry,
        )
        self._cost = Counter(
            "sse_cost", "Price of the tokens, in US dollars.", ("route", "model"), registry=registry
        )
        self._models = set[str]()

    def count_end(self, route: str, record: SourceRecord) -> None:
        """Count a stream that has ended.

        Args:
            route: the label of its route.
            record: the report of its sources.
        """
        if record.fallback_used:
            self._fallbacks.labels(route, record.source).inc()
        if record.transform_errors:
            self._transform_errors.labels(route).inc(record.transform_errors)
        if record.order_violations:
            self._order_violations.labels(route).inc(record.order_violations)
        for call in record.calls.values():
            self._count_call(route, call)

    def _count_call(self, route: str, call: ModelCall) -> None:
        model, usage = self._label(call.model), call.usage
        kinds = {
            "input": usage.input_tokens - min(usage.cache_read_tokens, usage.input_tokens),
            "cached_input": min(usage.cache_read_tokens, usage.input_tokens),
            "output": usage.output_tokens,
        }
        for kind, count in kinds.items():
            if count:
                self._tokens.labels(route, model, kind).inc(count)
        if call.cost is not None and call.cost > 0:
            self._cost.labels(route, model).inc(float(call.cost))

    def _label(self, model: str) -> str:
        """Return the name of a model, or `other` if there are too many names."""
        if model not in self._models:
            if len(self._models) >= _MAX_MODELS or len(model) > _LONGEST_MODEL:
                return _OTHER
            self._models.add(model)
        return model.encode("utf-8", "replace").decode()
