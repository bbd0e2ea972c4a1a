"""The figures as markdown."""

import platform
import statistics
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import sse_middleware
from benchmarks.apps import PUBSUB, UNRECORDED
from benchmarks.harness.bench import Table
from benchmarks.harness.budgets import Budget

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
Instructions are counted by callgrind. They do not depend on the load of the machine; use them to
compare two versions (`--baseline`). All other figures are times: the CPU figure of a round is the
lower quartile of its passes; a table gives the median of the rounds, and the median of the ratios
within each round. `json` shows the noise of the times, because Starlette alone answers this request
in the app of sse-starlette. Times are divided by the number of events, not of messages: a
contestant that sends several events at once is cheaper in `bursts` and `turns`, and sends some of
them later."""
_PEERS = ("starlette", "sse-starlette", PUBSUB)
_PEERS_ELSE = (UNRECORDED,)
_DIGITS = 4


def versions() -> dict[str, str]:
    """Return the versions on which the figures depend, by the name of the software."""
    found = {name: metadata.version(name) for name in PACKAGES}
    return {"Python": platform.python_version(), **found}


def heading_text() -> str:
    """Return the heading: the versions, the machine and the method."""
    found = versions()
    lines = [
        f"- Python {found.pop('Python')} on {platform.platform()}, {_processor()}",
        f"- sse_middleware {sse_middleware.__version__}",
        *(f"- {name} {version}" for name, version in found.items()),
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
    """Return a table with the figures of each contestant and its ratios to the peers."""
    compared = _PEERS if table.samples.keys() & set(_PEERS) else _PEERS_ELSE
    peers = [peer for peer in compared if peer in table.samples]
    figures = ["figure"] if table.is_exact else ["median", "min to max"]
    heads = ["contestant", *figures, *(f": {peer}" for peer in peers), *table.further]
    rows = [[name, *_cells(table, name, peers)] for name in table.samples]
    note = [table.note.strip(), ""] if table.note else []
    lines = [table.unit, "", *note, *markdown_rows(heads, rows)]
    return section(table.name, lines)


def _cells(table: Table, contestant: str, peers: list[str]) -> list[str]:
    samples = table.samples[contestant]
    ratios = [Budget(table.name, 0, peer).measured(table, contestant) for peer in peers]
    figures = [number(statistics.median(samples))]
    if not table.is_exact:
        figures.append(_spread(samples))
    further = [number(column[contestant]) for column in table.further.values()]
    return [*figures, *map(_with_spread, ratios), *further]


def budgets_text(budgets: Iterable[Budget], tables: list[Table]) -> str:
    """Return a table of the budgets whose measure is one of `tables`."""
    by_name = {table.name: table for table in tables}
    rows = [
        [budget.table, contestant, budget.text(), _with_spread(values), _verdict(budget, values)]
        for budget in budgets
        if budget.table in by_name
        for contestant in budget.contestants
        if (values := budget.measured(by_name[budget.table], contestant))
    ]
    heads = ["measure", "contestant", "budget", "measured", "verdict"]
    return section("Budgets", markdown_rows(heads, rows))


def _verdict(budget: Budget, values: list[float]) -> str:
    return "met" if statistics.median(values) <= budget.limit else "**missed**"


def section(title: str, lines: Iterable[str]) -> str:
    """Return a section of the report."""
    return "\n".join(["", f"## {title}", "", *lines])


def markdown_rows(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Return the lines of a markdown table."""
    for row in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(row)} |"


def _with_spread(values: list[float]) -> str:
    if len(values) < 2:  # noqa: PLR2004 - one value has no spread; none is a ratio to zero
        return "".join(map(number, values))
    return f"{number(statistics.median(values))} ({_spread(values)})"


def _spread(values: list[float]) -> str:
    return f"{number(min(values))} to {number(max(values))}"


def number(value: float) -> str:
    """Return a number with a precision of a thousandth, or with all digits before the point."""
    return f"{value:,.0f}" if abs(value) >= 10**_DIGITS else f"{value:.{_DIGITS}g}"
