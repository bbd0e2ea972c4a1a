"""The figures as markdown, and the budgets they are held against."""

import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import sse_middleware
from benchmarks.apps import CHANNELS, NOT_KEPT, PUBSUB, RECORDED, UNRECORDED, US
from benchmarks.harness.bench import Table
from benchmarks.suites.channels import RATES, READERS
from benchmarks.suites.redis_store import BARE, ELSEWHERE, IN_REDIS
from benchmarks.suites.resuming import FRESH, RESUMED

PACKAGES = (
    "uvicorn",
    "uvloop",
    "httptools",
    "anyio",
    "starlette",
    "sse-starlette",
    "fastapi",
    "asgi-correlation-id",
    "prometheus-fastapi-instrumentator",
    "prometheus-client",
    "redis",
    "hiredis",
)
METHOD = """\
A CPU figure of a round is the one that a quarter of its passes are below. What is given is the
median of the rounds, and the median of the ratios within each round. `json` shows the noise, as
sse-starlette's app answers there by Starlette alone. Events are counted and not timed: whoever
sends several at once is cheaper in `bursts` and `turns`, and later by as long as it waits."""
_PEERS = ("starlette", "sse-starlette", PUBSUB)
_ELSE = (UNRECORDED,)
_DIGITS = 4
_NOISE = 1.25  # of the few events a second that `frozen` looks at


@dataclass(frozen=True)
class Budget:
    """The most that we may cost.

    Attributes:
        table: the measure.
        limit: of the ratio to `against`, of the difference to it, or of the figure itself.
        against: a contestant, or nothing.
        kind: which of the three.
        who: those of us whom it is for.
    """

    table: str
    limit: float
    against: str = ""
    kind: Literal["ratio", "difference", "figure"] = "ratio"
    who: tuple[str, ...] = NOT_KEPT

    def text(self) -> str:
        """Say it in words."""
        words = {
            "ratio": f"≤ {self.limit:g} of {self.against}",
            "difference": f"≤ {self.limit:g} over {self.against}",
            "figure": f"≤ {self.limit:g}",
        }
        return words[self.kind]

    def measured(self, table: Table, contestant: str) -> list[float]:
        """Return what it limits, one value a round."""
        ours = table.samples.get(contestant, [])
        if self.kind == "figure":
            return ours
        theirs = table.samples.get(self.against, [])
        pairs = zip(ours, theirs, strict=False)
        if self.kind == "ratio":
            return [our / their for our, their in pairs if their]
        return [our - their for our, their in pairs]


EVENTSOURCE = (RECORDED,)
BUDGETS = (
    Budget("bursts", 0.5, "starlette"),
    Budget("bursts", 0.25, "sse-starlette"),
    Budget("bursts of 50", 0.5, "starlette"),
    Budget("bursts of 50", 0.25, "sse-starlette"),
    Budget("turns-1", 1.25, "starlette"),
    Budget("turns-100", 1.15, "starlette"),
    Budget("turns-100", 0.7, "sse-starlette"),
    *(
        Budget(f"in-process: {pattern}, {loop}", 1.5, "starlette", "difference")
        for pattern in ("bursts", "turns")
        for loop in ("asyncio", "uvloop")
    ),
    Budget("short", 1.3, "starlette"),
    Budget("json", 1.03, "starlette", who=US),
    Budget("first-byte", 1.05, "starlette"),
    Budget("idle: memory", 1.12, "starlette"),
    Budget("idle: memory", 0.65, "sse-starlette"),
    Budget("idle: heartbeats", 0.5, "sse-starlette", who=EVENTSOURCE),
    Budget("lateness: p99", 10, kind="figure", who=EVENTSOURCE),
    Budget("lateness: max", 100, kind="figure", who=EVENTSOURCE),
    Budget("lateness: max while they open", 100, kind="figure", who=EVENTSOURCE),
    Budget("frozen: CPU per event", _NOISE, kind="figure", who=US),
    Budget("frozen: p50 of latency", _NOISE, kind="figure", who=US),
    Budget("recording", 1.1, UNRECORDED, who=EVENTSOURCE),
    Budget("recorded-bytes", 2, kind="figure", who=EVENTSOURCE),
    Budget("resume: p99", 10, FRESH, "difference", who=(RESUMED,)),
    Budget("redis-recording", 1.5, UNRECORDED, who=(IN_REDIS,)),
    Budget("redis-replay", 1.0, BARE, who=(IN_REDIS,)),
    Budget("redis-latency: p50", 10, kind="figure", who=(ELSEWHERE,)),
    *(Budget(f"channels: p50 at {rate:,}/s", 1.3, PUBSUB, who=(CHANNELS,)) for rate in RATES),
    Budget("channels: p50 of one to many", 1.3, PUBSUB, who=(CHANNELS,)),
    *(
        Budget(f"channels: CPU, readers: {readers}", 1, PUBSUB, who=(CHANNELS,))
        for readers in READERS[1:]
    ),
)


def versions() -> str:
    """Return what has been measured, and on what."""
    lines = [
        f"- Python {platform.python_version()} on {platform.platform()}, {_processor()}",
        f"- sse_middleware {sse_middleware.__version__}",
        *(f"- {name} {metadata.version(name)}" for name in PACKAGES),
    ]
    return "\n".join(["# Benchmarks", "", *lines, "", METHOD])


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table_text(table: Table) -> str:
    """Return a table with each contestant's figures and its ratios to the peers."""
    compared = _PEERS if table.samples.keys() & set(_PEERS) else _ELSE
    peers = [peer for peer in compared if peer in table.samples]
    heads = ["contestant", "median", "min to max", *(f": {peer}" for peer in peers)]
    rows = []
    for contestant, samples in table.samples.items():
        ratios = [Budget(table.name, 0, peer).measured(table, contestant) for peer in peers]
        cells = [_number(statistics.median(samples)), _spread(samples), *map(_with_spread, ratios)]
        rows.append([contestant, *cells])
    note = [table.note.strip(), ""] if table.note else []
    return "\n".join(["", f"## {table.name}", "", f"{table.unit}", "", *note, *_rows(heads, rows)])


def budgets_text(tables: list[Table]) -> str:
    """Return a table of the budgets of what has been measured."""
    by_name = {table.name: table for table in tables}
    rows = [
        [budget.table, contestant, budget.text(), _with_spread(values), _verdict(budget, values)]
        for budget in BUDGETS
        if budget.table in by_name
        for contestant in budget.who
        if (values := budget.measured(by_name[budget.table], contestant))
    ]
    heads = ["measure", "contestant", "budget", "measured", "verdict"]
    return "\n".join(["", "## Budgets", "", *_rows(heads, rows)])


def _verdict(budget: Budget, values: list[float]) -> str:
    return "met" if statistics.median(values) <= budget.limit else "**missed**"


def _rows(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(row)} |"


def _with_spread(values: list[float]) -> str:
    if len(values) < 2:  # noqa: PLR2004 - one has no spread, and none was a ratio to zero
        return "".join(map(_number, values))
    return f"{_number(statistics.median(values))} ({_spread(values)})"


def _spread(values: list[float]) -> str:
    return f"{_number(min(values))} to {_number(max(values))}"


def _number(value: float) -> str:
    """Return enough digits to tell one percent, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 10**_DIGITS else f"{value:.{_DIGITS}g}"
