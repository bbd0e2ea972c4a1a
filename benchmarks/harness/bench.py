"""What the suites share: how much they do, who takes part, and what they hand back."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.processes import Server

_SETTLING = 0.01  # seconds: what a server does behind the last byte that we have read


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rounds: int
    divisor: int  # of events, responses and passes
    streams: int  # in `idle`
    late_streams: int  # in `lateness`
    frozen_streams: int
    seconds: float  # how long open streams are listened to, two heartbeats or more

    def of(self, count: int) -> int:
        """Return as much of `count` as this run has time for."""
        return max(count // self.divisor, min(count, 1))


FULL = Sizes(
    rounds=5, divisor=1, streams=2_000, late_streams=10_000, frozen_streams=500, seconds=10
)
QUICK = Sizes(rounds=1, divisor=100, streams=50, late_streams=50, frozen_streams=10, seconds=0.5)


@dataclass
class Table:
    """One measure of all contestants.

    Attributes:
        name: begins with the suite's.
        unit: of the samples.
        note: what is to be known of this run.
        samples: by contestant, one a round; the same place is the same round.
    """

    name: str
    unit: str
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contestant: str, sample: float) -> None:
        """Add the sample of the next round."""
        self.samples.setdefault(contestant, []).append(sample)


class Bench:
    """Where the suites run.

    Args:
        sizes: how much they do.
        contestants: who takes part.
        core: of the measured processes; `None`: any.
    """

    def __init__(self, sizes: Sizes, contestants: tuple[str, ...], core: str | None) -> None:
        self.sizes = sizes
        self.contestants = contestants
        self.core = core
        self._servers: dict[str, Server] = {}
        self._stack = ExitStack()

    def servers(self) -> dict[str, Server]:
        """Return a server of each contestant, which is kept for further suites."""
        if not self._servers:
            self._servers = {
                name: self._stack.enter_context(Server(name, self.core))
                for name in self.contestants
            }
        return self._servers

    def turns(self, passes: int, among: tuple[str, ...] = ()) -> Iterator[str]:
        """Return the contestants of all passes, in one order and then in the other."""
        names = [name for name in self.contestants if name in (among or self.contestants)]
        for number in range(passes):
            yield from names if number % 2 == 0 else reversed(names)

    def fill(
        self,
        table: Table,
        passes: int,
        measure: Callable[[str], float],
        *,
        pick: Callable[[list[float]], float],
        rounds: int | None = None,
    ) -> None:
        """Add rounds to `table`; in each every contestant is measured several times, in turn.

        Args:
            table: where to.
            passes: measurements of a contestant in a round.
            measure: tells the figure of a contestant.
            pick: makes one sample of a round's figures.
            rounds: how many; without, as many as the run has.
        """
        for _ in range(rounds or self.sizes.rounds):
            found: dict[str, list[float]] = {}
            for name in self.turns(self.sizes.of(passes)):
                found.setdefault(name, []).append(measure(name))
            for name, figures in found.items():
                table.add(name, pick(figures))

    def close(self) -> None:
        """End all kept servers."""
        self._servers = {}
        self._stack.close()


def undisturbed(figures: list[float]) -> float:
    """Return the figure that a quarter is below.

    What else the machine does, and who shares it unseen, only ever adds to a cost: by half, for
    some milliseconds or seconds at a time.
    """
    return sorted(figures)[len(figures) // 4]


def percentiles(figures: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile."""
    cuts = statistics.quantiles(figures, n=100)
    return cuts[49], cuts[98]


def cpu_of(server: Server, work: Callable[[], object]) -> float:
    """Return the microseconds of CPU that `work` costs the server."""
    before = server.ask("cpu")
    work()
    time.sleep(_SETTLING)
    return (server.ask("cpu") - before) * 1e6
