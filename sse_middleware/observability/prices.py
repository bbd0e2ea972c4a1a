"""The prices of tokens, by the tables of genai-prices, which this module imports.

The import takes about half a second, so it happens only if the option `usage_cost` is set, when the
middleware is created.
"""

import logging
from decimal import Decimal
from typing import Final

from genai_prices import Usage, calc_price

from sse_middleware.observability.observer import Observer, guarded
from sse_middleware.observability.source_record import TokenUsage
from sse_middleware.observability.stream_record import StreamRecord

logger = logging.getLogger("sse_middleware")

_MAX_WARNINGS: Final = 100


def price_of(usage: TokenUsage, model: str, provider: str = "") -> Decimal | None:
    """Return the price of tokens in US dollars, `None` if it is not known.

    Args:
        usage: the tokens.
        model: the name of the model.
        provider: its provider, as genai-prices names it; `""` to find it by the model. Qwen's own
            prices are not in the tables; for its models those of OpenRouter are returned.
    """
    tokens = Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=min(usage.cache_read_tokens, usage.input_tokens) or None,
        cache_write_tokens=usage.cache_write_tokens or None,
    )
    if model.startswith("qwen") and provider in ("", "qwen", "alibaba"):
        model, provider = f"qwen/{model}", "openrouter"
    try:
        return calc_price(tokens, model, provider_id=provider or None).total_price
    except (LookupError, ValueError):  # not in the tables; or numbers that contradict each other
        return None


@guarded
class Prices(Observer):
    """Compute the prices of the calls of each stream that has ended.

    It is the first observer, so that the others have them.
    """

    def __init__(self) -> None:
        self._unknown = set[str]()

    def ended(self, record: StreamRecord) -> None:
        """Compute the prices that the app has not given."""
        for call in () if record.sources is None else record.sources.calls.values():
            if call.cost is None:
                call.cost = price_of(call.usage, call.model, call.provider)
            if call.cost is None and call.model not in self._unknown:
                self._warn(call.model, record.route)

    def _warn(self, model: str, route: str) -> None:
        if len(self._unknown) < _MAX_WARNINGS:
            self._unknown.add(model)
            logger.warning(
                "the price of model %.80a of route %s is not known: its tokens are counted without "
                "a cost. Pass model=, provider= or cost= to current_stream().usage, or update "
                "genai-prices. This is logged once per model",
                model,
                route,
            )
