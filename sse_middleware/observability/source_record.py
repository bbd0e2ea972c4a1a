"""What the additions for back ends report about a stream: its sources, and what they cost.

A stream that uses none of them has no such record.
"""

from dataclasses import dataclass, field
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """The tokens of one call of a model.

    Attributes:
        input_tokens: those of the prompt, including the cached ones.
        output_tokens: those of the answer, including those of its reasoning.
        cache_read_tokens: those of the prompt that were read from the provider's cache.
        cache_write_tokens: those of the prompt that were written to it.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """All tokens."""
        return self.input_tokens + self.output_tokens

    def updated(self, newer: "TokenUsage") -> "TokenUsage":
        """Return the usage after a newer report of the same call; no number becomes smaller."""
        return TokenUsage(
            max(self.input_tokens, newer.input_tokens),
            max(self.output_tokens, newer.output_tokens),
            max(self.cache_read_tokens, newer.cache_read_tokens),
            max(self.cache_write_tokens, newer.cache_write_tokens),
        )


@dataclass(slots=True)
class ModelCall:
    """One call of a model.

    Attributes:
        model: the name of the model, `""` if it is not known.
        provider: the name of its provider, `""` to find it by the model.
        usage: its tokens so far.
        cost: the price in US dollars, `None` if it is not known.
    """

    model: str = ""
    provider: str = ""
    usage: TokenUsage = TokenUsage()
    cost: Decimal | None = None


@dataclass(slots=True)
class SourceRecord:
    """The report of one stream.

    Attributes:
        source: the name of the source that has answered, `""` if it is not known.
        fallback_used: whether that is another source than the first one.
        transform_errors: the number of events that were dropped because they could not be
            transformed.
        order_violations: the number of events that were not in the order of the mark.
        calls: the calls of models, by the keys that the app has given them.
        has_upstream: whether its app reads an upstream, for which it may wait for long.
    """

    source: str = ""
    fallback_used: bool = False
    transform_errors: int = 0
    order_violations: int = 0
    calls: dict[str, ModelCall] = field(default_factory=dict)
    has_upstream: bool = False

    @property
    def usage(self) -> TokenUsage:
        """The tokens of all calls together."""
        usages = [call.usage for call in self.calls.values()]
        return TokenUsage(
            sum(usage.input_tokens for usage in usages),
            sum(usage.output_tokens for usage in usages),
            sum(usage.cache_read_tokens for usage in usages),
            sum(usage.cache_write_tokens for usage in usages),
        )

    @property
    def cost(self) -> Decimal | None:
        """The price of all calls together in US dollars, `None` if one is not known."""
        costs = [call.cost for call in self.calls.values()]
        known = [cost for cost in costs if cost is not None]
        return sum(known, Decimal(0)) if known and len(known) == len(costs) else None

    @property
    def log_fields(self) -> dict[str, object]:
        """The fields of the log record."""
        usage, cost = self.usage, self.cost
        return {
            "models": sorted({call.model for call in self.calls.values()}),
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "cache_read_tokens": usage.cache_read_tokens,
            "cost_usd": None if cost is None else float(cost),
            "source": self.source,
            "fallback_used": self.fallback_used,
            "transform_errors": self.transform_errors,
            "order_violations": self.order_violations,
        }
