"""Suites at full speed: the CPU time of an event, of a stream and of a request."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.apps import CONTESTANTS, OURS
from benchmarks.harness.bench import Bench, Sizes, Table, cpu_of, undisturbed
from benchmarks.harness.budgets import Budget
from benchmarks.load_generator import Load, Request, first_byte, stream_request
from benchmarks.processes import InProcess

_FEW = 20  # events of a short stream, and the minimum of a quick run


@dataclass(frozen=True, kw_only=True)
class Case:
    """A pattern of requests.

    Attributes:
        name: of the table.
        unit: `event`, or another name for a response; a figure is the cost of one.
        events: in each response; 0 requests JSON instead.
        burst: events between two turns of the loop; 0: no turns.
        connections: that are open at the same time.
        responses: in each pass.
        passes: in each round.
        precise: whether a difference of one percent matters. Two processes of one app differ by two
            or three percent because of their memory layout, so that each round then starts new
            processes, and there are more rounds.
    """

    name: str
    unit: str = "event"
    events: int
    burst: int = 1
    connections: int = 1
    responses: int = 1
    passes: int
    precise: bool = False

    def request(self, headers: Mapping[str, str]) -> Request:
        """Return the request of each connection."""
        if self.events:
            return stream_request(headers, self.events, self.burst)
        return Request("/json", headers, mark=b'"price":1.5}', end=b'"price":1.5}')


CASES = {
    "bursts": (
        Case(name="bursts", events=10_000, burst=0, passes=4),
        Case(name="bursts of 50", events=10_000, burst=50, passes=4),
    ),
    "turns-1": (Case(name="turns-1", events=5_000, passes=8),),
    "turns-100": (Case(name="turns-100", events=300, connections=100, responses=100, passes=2),),
    "short": (
        Case(name="short", unit="stream", events=_FEW, connections=16, responses=160, passes=8),
    ),
    "json": (
        Case(
            name="json",
            unit="request",
            events=0,
            connections=16,
            responses=400,
            passes=12,
            precise=True,
        ),
    ),
}


BUDGETS = (
    Budget("bursts", 0.5, "starlette"),
    Budget("bursts", 0.25, "sse-starlette"),
    Budget("bursts of 50", 0.5, "starlette"),
    Budget("bursts of 50", 0.25, "sse-starlette"),
    Budget("turns-1", 1.25, "starlette"),
    Budget("turns-100", 1.15, "starlette"),
    Budget("turns-100", 0.7, "sse-starlette"),
    Budget("short", 1.3, "starlette"),
    Budget("json", 1.03, "starlette", contestants=OURS),
    Budget("first-byte", 1.05, "starlette"),
    *(
        Budget(f"in-process: {pattern}, {loop}", 1.5, "starlette", "difference")
        for pattern in ("bursts", "turns")
        for loop in ("asyncio", "uvloop")
    ),
)


def run_cases(bench: Bench, suite: str) -> list[Table]:
    """Measure each case of a suite."""
    return [_measured(bench, _fitted(case, bench.sizes)) for case in CASES[suite]]


def _fitted(case: Case, sizes: Sizes) -> Case:
    """Return the case with the amount of work of a run of these sizes."""
    return replace(
        case,
        events=max(sizes.of(case.events), min(case.events, _FEW)),
        responses=max(sizes.of(case.responses), case.connections),
    )


def _measured(bench: Bench, case: Case) -> Table:
    table = Table(case.name, f"µs of CPU per {case.unit}")
    units = case.responses * (case.events if case.unit == "event" else 1)
    rounds = bench.sizes.rounds
    for part in [1] * (2 * rounds - 1) if case.precise else [rounds]:
        if case.precise:
            bench.close()
        with _costs(bench, case) as costs:
            bench.fill(
                table,
                case.passes,
                lambda name: costs[name]() / units,
                pick=undisturbed,
                rounds=part,
            )
    return table


@contextmanager
def _costs(bench: Bench, case: Case) -> Iterator[dict[str, Callable[[], float]]]:
    """Connect to all servers; yield a function per contestant that measures a pass."""
    costs: dict[str, Callable[[], float]] = {}
    with ExitStack() as stack:
        for name, server in bench.servers().items():
            request = case.request(CONTESTANTS[name].headers)
            load = Load(server.port, request, case.connections)
            stack.enter_context(closing(load))
            fetch = partial(load.fetch, case.responses)
            fetch()  # to warm up
            costs[name] = partial(cpu_of, server, fetch)
        yield costs


def run_in_process(bench: Bench, _: str) -> list[Table]:
    """Measure apps without a server, on both loops."""
    events = 5_000
    tables = []
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(InProcess(name, bench.core)) for name in bench.contestants
        }
        for child in children.values():
            child.ask(f"uvloop 1 {events}")  # to warm up
        for pattern, burst in (("bursts", 0), ("turns", 1)):
            for loop in ("asyncio", "uvloop"):
                line = f"{loop} {burst} {events}"
                table = Table(f"in-process: {pattern}, {loop}", "µs of CPU per event")

                def cost(name: str, line: str = line) -> float:
                    return children[name].ask(line) / events * 1e6

                bench.fill(table, 4, cost, pick=undisturbed)
                tables.append(table)
    return tables


def run_first_byte(bench: Bench, _: str) -> list[Table]:
    """Measure the time to the first byte of a body, always on a new connection."""
    table = Table("first-byte", "ms to the body's first byte")
    servers = bench.servers()

    def milliseconds(name: str) -> float:
        headers = {**CONTESTANTS[name].headers, "Connection": "close"}
        request = stream_request(headers, events=_FEW, burst=1)
        return first_byte(servers[name].port, request)[0] * 1e3

    bench.fill(table, 200, milliseconds, pick=statistics.median)
    return [table]
