"""The sizes of a run, its contestants, and the tables that the suites return."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.processes import Server

_SETTLING_SECONDS = 0.01
"""The time in which a server finishes its work after the last byte that the client reads."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The amount of work in a run.

    Attributes:
        rounds: samples of each contestant.
        divisor: of the number of events, responses and passes.
        instruction_divisor: the same for the operations whose instructions are counted.
        shared_processes: contestants whose instructions are counted share processes. This saves
            most of the time, but the interpreter has then adapted its code to several of them.
        streams: open in `idle`.
        late_streams: open in `lateness`.
        frozen_streams: open in `frozen`.
        many_streams: open in `many`.
        seconds: the time for which open streams are read; at least two heartbeats.
        freezes: call `gc.freeze` in `lateness` and `many` before streams open.
    """

    rounds: int
    divisor: int
    instruction_divisor: int
    shared_processes: bool
    streams: int
    late_streams: int
    frozen_streams: int
    many_streams: int
    seconds: float
    freezes: bool = False

    def of(self, count: int) -> int:
        """Return `count` as a run of this size does it."""
        return max(count // self.divisor, min(count, 1))


FULL = Sizes(
    rounds=5,
    divisor=1,
    instruction_divisor=1,
    shared_processes=False,
    streams=2_000,
    late_streams=10_000,
    frozen_streams=500,
    many_streams=50_000,
    seconds=10,
)
QUICK = Sizes(
    rounds=1,
    divisor=100,
    instruction_divisor=20,
    shared_processes=True,
    streams=50,
    late_streams=50,
    frozen_streams=10,
    many_streams=100,
    seconds=0.5,
)


@dataclass
class Table:
    """One measure of all contestants.

    Attributes:
        name: begins with the name of the suite.
        unit: of the samples.
        note: the conditions of this run.
        samples: by contestant, one per round, in the order of the rounds.
        is_exact: the samples have no spread.
        further: more figures by heading and contestant.
    """

    name: str
    unit: str
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)
    is_exact: bool = False
    further: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, contestant: str, sample: float) -> None:
        """Add the sample of the next round."""
        self.samples.setdefault(contestant, []).append(sample)


class Bench:
    """A run of suites.

    Args:
        sizes: the amount of work.
        contestants: their names.
        core: of the measured processes; `None`: any.
        all_cores: those that processes may use whose time is not measured; empty: any.
    """

    def __init__(
        self,
        sizes: Sizes,
        contestants: tuple[str, ...],
        core: int | None,
        all_cores: tuple[int, ...] = (),
    ) -> None:
        self.sizes = sizes
        self.contestants = contestants
        self.core = core
        self.all_cores = all_cores
        self._servers: dict[str, Server] = {}
        self._stack = ExitStack()

    def servers(self) -> dict[str, Server]:
        """Return a server of each contestant; later suites use the same servers."""
        if not self._servers:
            self._servers = {
                name: self._stack.enter_context(Server(name, self.core))
                for name in self.contestants
            }
        return self._servers

    def turns(self, passes: int, among: tuple[str, ...] = ()) -> Iterator[str]:
        """Return the contestants of all passes; every second pass has the reverse order."""
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
        """Add rounds to `table`. In each, the contestants take turns to be measured.

        Args:
            table: receives the samples.
            passes: measurements of a contestant in a round.
            measure: returns the figure of a contestant.
            pick: makes one sample of the figures of a round.
            rounds: their number; `None`: that of the run.
        """
        for _ in range(rounds or self.sizes.rounds):
            found: dict[str, list[float]] = {}
            for name in self.turns(self.sizes.of(passes)):
                found.setdefault(name, []).append(measure(name))
            for name, figures in found.items():
                table.add(name, pick(figures))

    def close(self) -> None:
        """End the servers."""
        self._servers = {}
        self._stack.close()


def undisturbed(figures: list[float]) -> float:
    """Return the lower quartile.

    Other work on the machine only adds to a cost: up to half of it, for milliseconds or seconds.
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
    time.sleep(_SETTLING_SECONDS)
    return (server.ask("cpu") - before) * 1e6
