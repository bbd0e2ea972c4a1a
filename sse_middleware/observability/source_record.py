"""What the additions for back ends report about a stream: its sources, and what they cost.

A stream that uses none of them has no such record.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class SourceRecord:
    """The report of one stream.

    Attributes:
        source: the name of the source that has answered, `""` if it is not known.
        fallback_used: whether that is another source than the first one.
        transform_errors: the number of events that were dropped because they could not be
            transformed.
        order_violations: the number of events that were not in the order of the mark.
        has_upstream: whether its app reads an upstream, for which it may wait for long.
    """

    source: str = ""
    fallback_used: bool = False
    transform_errors: int = 0
    order_violations: int = 0
    has_upstream: bool = False

    @property
    def log_fields(self) -> dict[str, object]:
        """The fields of the log record."""
        return {
            "source": self.source,
            "fallback_used": self.fallback_used,
            "transform_errors": self.transform_errors,
            "order_violations": self.order_violations,
        }
