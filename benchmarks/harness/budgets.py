"""Budgets: the highest figures that the contestants with the middleware may reach."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.apps import NOT_KEPT
from benchmarks.harness.bench import Table


@dataclass(frozen=True)
class Budget:
    """An upper limit.

    Attributes:
        table: the name of the measure.
        limit: of the ratio to `against`, of the difference from it, or of the figure itself.
        against: a contestant, or empty.
        kind: the value that is limited.
        contestants: those that are limited.
    """

    table: str
    limit: float
    against: str = ""
    kind: Literal["ratio", "difference", "figure"] = "ratio"
    contestants: tuple[str, ...] = NOT_KEPT

    def text(self) -> str:
        """Return the limit in words."""
        words = {
            "ratio": f"≤ {self.limit:g} of {self.against}",
            "difference": f"≤ {self.limit:g} over {self.against}",
            "figure": f"≤ {self.limit:g}",
        }
        return words[self.kind]

    def measured(self, table: Table, contestant: str) -> list[float]:
        """Return the values that are limited, one per round."""
        ours = table.samples.get(contestant, [])
        if self.kind == "figure":
            return ours
        theirs = table.samples.get(self.against, [])
        pairs = zip(ours, theirs, strict=False)
        if self.kind == "ratio":
            return [our / their for our, their in pairs if their]
        return [our - their for our, their in pairs]
