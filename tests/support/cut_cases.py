"""Cases of cut connections, with one server or several, and the checks of their outcomes.

A failure prints the seed of its sample; the variable `CUTS_SEED` repeats it.
"""

import asyncio
import itertools
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx2 as httpx

from tests.support import scripted_app
from tests.support.cut_proxy import Cut, CuttingProxy, How
from tests.support.event_source import ENDS, Dispatched, EventSource, events_in
from tests.support.servers import Server
from tests.support.waiting import HANG_SECONDS

ENVIRON = {"SSE_HEARTBEAT_INTERVAL": str(scripted_app.HEARTBEAT_SECONDS)}

SEED = int(os.environ.get("CUTS_SEED") or random.SystemRandom().randrange(10**6))
AT_ONCE = 40
HASTES = (0.0, 0.005)
FRAMING_BYTES = 16
"""The bytes that may follow the last event, and make one answer longer than another."""
MARKS = ("marked", "by_path")
SHAPES = ("lf", "crlf", "cr")
"""The shapes that are short enough to be cut at each byte."""


@dataclass(frozen=True)
class Case:
    """A client of one answer, and the cuts of its connections."""

    path: str
    cuts: Sequence[Cut]
    haste: float = 0.0
    closes: bool = True
    comes_often: bool = False  # the server disconnects it, too
    may_be_too_soon: bool = False  # a stream without events may not have ended everywhere yet
    end: str = "complete"


class Outcome(NamedTuple):
    """The outcome of a case."""

    case: Case
    client: EventSource
    made: int
    trouble: str
    passed: int


def path_of(shape: str, mark: str) -> str:
    return f"/{mark}/{shape}?pause=0.004"


async def play(ports: Sequence[int], case: Case, name: str) -> Outcome:
    """Play a case; each connection goes to the next of the ports."""
    async with CuttingProxy(ports, case.cuts) as proxy:
        path = f"{case.path}&client={name}"
        client = EventSource(proxy.port, path, haste=case.haste, closes=case.closes)
        trouble = ""
        try:
            async with asyncio.timeout(HANG_SECONDS):
                await client.run(
                    most_connections=len(case.cuts) + (1000 if case.comes_often else 4)
                )
        except (RuntimeError, TimeoutError) as exc:
            trouble = repr(exc)
    return Outcome(case, client, len(proxy.made), trouble, proxy.passed)


def play_all(servers: Sequence[Server], cases: Iterable[Case]) -> dict[str, Outcome]:
    """Play cases, many at once, and return the outcome of each by the name of its client.

    The first connections are distributed over the servers, too.
    """
    group = random.SystemRandom().randrange(10**12)
    waiting = ((f"{group}-{number}", case) for number, case in enumerate(cases))
    outcomes = {}
    ports = [server.port for server in servers]

    async def play_some(number: int) -> None:
        first = number % len(ports)
        for name, case in waiting:
            outcomes[name] = await play(ports[first:] + ports[:first], case, name)

    async def play_them() -> None:
        await asyncio.gather(*map(play_some, range(AT_ONCE)))

    asyncio.run(play_them())
    to_be_cut = sum(bool(outcome.case.cuts) for outcome in outcomes.values())
    assert sum(outcome.made for outcome in outcomes.values()) > 0.9 * to_be_cut - 1
    return outcomes


def length_of(servers: Sequence[Server], path: str) -> int:
    """Return the number of bytes of an answer, including its head and framing, rounded up.

    The number is round, so that a seed gives the same cuts each time.
    """
    (outcome,) = play_all(servers, [Case(path, ())]).values()
    return 100 * (1 + (outcome.passed + FRAMING_BYTES) // 100)


def complaint(outcome: Outcome, expected: Sequence[Dispatched]) -> str:
    """Return the faults in the events that a client has received, `""` if there are none."""
    case, client, made, trouble, _ = outcome
    secret = client.events[0].last_event_id.rpartition("-")[0] if client.events else ""
    wanted = [
        Dispatched(event.type, event.data, f"{secret}-{number}")
        for number, event in enumerate(expected, 1)
    ]
    ends = [event.type for event in client.controls if event.type in ENDS]
    expected_ends = [] if expected[-1].type in ENDS else [case.end]
    asked_with = client.asked_with
    too_soon = sum(
        cursor.endswith("-0") and cursor == next_cursor
        for cursor, next_cursor in itertools.pairwise(asked_with)
        if case.may_be_too_soon
    )
    too_often = len(asked_with) > made + too_soon + 1 + (not case.closes)
    since_first_id = itertools.dropwhile(lambda cursor: not cursor, asked_with)
    problems = (
        (trouble, trouble),
        (client.stopped_by != (case.end if case.closes else "204"), f"{client.stopped_by=}"),
        (client.events != wanted, f"{client.events=}"),
        (ends != expected_ends, f"{ends=}"),
        (client.discarded, f"{client.discarded=}"),
        (not all(since_first_id), f"it has lost its event id: {asked_with}"),
        (too_often and not case.comes_often, f"{made} cuts, but {asked_with=}"),
    )
    return "; ".join(problem for is_there, problem in problems if is_there)


def complaints(
    servers: Sequence[Server], cases: Iterable[Case], *, all_made: bool = False
) -> list[str]:
    """Play cases on the scripted app, and return the faults."""
    outcomes = play_all(servers, cases)
    runs = Counter[str]()
    for server in servers:
        runs.update(httpx.get(f"{server.url}/runs", timeout=HANG_SECONDS).json())
    found = []
    for name, outcome in outcomes.items():
        case = outcome.case
        shape = re.split(r"[/?]", case.path)[2]
        problem = complaint(outcome, events_in(scripted_app.body_of(shape)))
        begun = outcome.client.asked_with.count("")
        # An app without an event stops if its client leaves, and the client starts it again.
        with_nothing = sum(cursor.endswith("-0") for cursor in outcome.client.asked_with)
        if not begun <= runs[name] <= begun + with_nothing:
            problem += f"; the app ran {runs[name]} times and not {begun}"
        if all_made and outcome.made != len(case.cuts):
            problem += f"; only {outcome.made} cuts were made"
        if problem:
            found.append(f"{case}: {problem}")
    return found


def report(found: Sequence[str]) -> str:
    return "\n".join([f"CUTS_SEED={SEED}: {len(found)} went wrong", *found[:10]])


# Places with a name

CURSOR = rb"id: [\w-]{22}-%d"
AFTER_START = rb"retry: \d+\n\n"
END = rb"event: (?:compl|err)"

PLACES: dict[str, tuple[str, Sequence[bytes]]] = {
    "in the status line": ("lf", [rb"HTTP/1.1 2"]),
    "in a header": ("lf", [rb"(?i)content-ty"]),
    "after the head": ("lf", [rb"\r\n\r\n"]),
    "in the name of start": ("lf", [rb"event: sta"]),
    "in the data of start": ("lf", [rb'"resumed":fa']),
    "in the id of start": ("lf", [rb"id: [\w-]{7}"]),
    "in the retry of start": ("lf", [rb"retry: 2"]),
    "before the blank line of start": ("lf", [rb"retry: \d+\n"]),
    "after start": ("lf", [AFTER_START]),
    "in a field name": ("lf", [rb"event: named\nda"]),
    "in the name of our id": ("lf", [rb"data: one\ni"]),
    "in our id": ("lf", [rb"data: one\nid: [\w-]{7}"]),
    "in the number of our id": ("lf", [CURSOR % 1]),
    "before a blank line": ("lf", [CURSOR % 2 + rb"\n"]),
    "after an event": ("lf", [CURSOR % 2 + rb"\n\n"]),
    "in a comment": ("lf", [rb": a comm"]),
    "in an event of several chunks": ("lf", [rb"data: half\nda"]),
    "in a character of two bytes": ("lf", [rb"data: \xc3"]),
    "in a character of three bytes": ("lf", [rb"\xe6\x97"]),
    "in a character of four bytes": ("lf", [rb"\xf0\x9f\x9a"]),
    "between CR and LF": ("crlf", [rb"data: one\r"]),
    "between the CR and LF of our id": ("crlf", [CURSOR % 1 + rb"\r"]),
    "between the CR and LF of a blank line": ("crlf", [CURSOR % 1 + rb"\r\n\r"]),
    "between two CRs": ("cr", [CURSOR % 2 + rb"\r"]),
    "after two CRs": ("cr", [CURSOR % 2 + rb"\r\r"]),
    "in the name of a heartbeat": ("lf", [rb"event: heart"]),
    "in the data of a heartbeat": ("crlf", [rb'"heartbeat_cou']),
    "after a heartbeat": ("cr", [rb"event: heartbeat\n.*\n\n"]),
    "in the name of the last event": ("lf", [rb"\nda(?=ta: last)"]),
    "in the last event": ("lf", [rb"data: la"]),
    "in the id of the last event": ("crlf", [rb"data: last\r\nid: [\w-]{7}"]),
    "between the CRs of the last event": ("cr", [rb"data: last\rid: [\w-]+\r"]),
    "after the last event": ("lf", [rb"data: last\nid: [\w-]+\n\n"]),
    "in the name of the end": ("lf", [END]),
    "in the data of the end": ("crlf", [END + rb'\w+\ndata: {"\w\w']),
    "in the id of the end": ("cr", [rb"id: [\w-]+\.\w"]),
    "before the blank line of the end": ("lf", [rb"id: [\w-]+\.\w+\n"]),
    "after the end": ("crlf", [rb"id: [\w-]+\.\w+\n\n"]),
    "twice in a row in a field name": ("lf", 2 * [rb"event: named\nda"]),
    "twice in a row in start": ("lf", 2 * [rb"event: sta"]),
    "in an event and in the start that follows": ("lf", [rb"data: thr", rb"event: sta"]),
    "in an event and after the start that follows": ("lf", [rb"data: thr", AFTER_START]),
    "in an event and in the head that follows": ("crlf", [rb"data: thr", rb"(?i)content-ty"]),
    "five times in a row in the last event": ("crlf", 5 * [rb"data: la"]),
    "three times in a row in the end": ("lf", 3 * [END]),
    "in each of four events": ("cr", [rb"data: tw", rb"data: thr", rb"data: fi", rb"data: la"]),
    "after each event": ("lf", [CURSOR % n + rb"\n\n" for n in range(1, 13)]),
}


def one_case_each(mark: str = "marked", **fields: Any) -> Iterator[Case]:
    """Cut at each named place, in one of the ways."""
    rng = random.Random(SEED)
    for shape, places in PLACES.values():
        cuts = [Cut(place, rng.choice(list(How)), rng.choice((False, True))) for place in places]
        yield Case(path_of(shape, mark), cuts, rng.choice(HASTES), **fields)


def random_cut(rng: random.Random, length: int) -> Cut:
    return Cut(rng.randrange(1, length), rng.choice(list(How)), rng.choice((False, True)))


def sampled_cases(length_of_shape: Mapping[str, int], number: int) -> Iterator[Case]:
    rng = random.Random(SEED)
    for _ in range(number):
        shape, length = rng.choice(list(length_of_shape.items()))
        cuts = [random_cut(rng, length) for _ in range(rng.choice((1, 1, 2, 3)))]
        yield Case(path_of(shape, rng.choice(MARKS)), cuts, rng.choice(HASTES))


def all_cuts(rng: random.Random, length: int, *, held: bool) -> Iterator[list[Cut]]:
    """Cut at each byte, and again somewhere in the rest."""
    for place in range(1, length):
        yield [Cut(place, rng.choice(list(How)), held)]
        yield [Cut(place, rng.choice(list(How)), held), random_cut(rng, length)]


def sweep(servers: Sequence[Server], shape: str, *, held: bool) -> Iterable[Case]:
    """Cut an answer at each byte, with a mark on its route and without."""
    rng = random.Random(SEED)
    length = length_of(servers, path_of(shape, "marked"))
    marks = itertools.cycle(("marked", "by_path", "by_path", "marked"))  # each byte with both
    return (
        Case(path_of(shape, mark), cuts, rng.choice(HASTES))
        for mark, cuts in zip(marks, all_cuts(rng, length, held=held), strict=False)
    )
