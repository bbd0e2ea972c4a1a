"""The results of many smoke tests as Markdown: a table for each URL, with a row for each day."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta

from sse_middleware.doctor.smoke import MEASURES, Run, points, shown

_COLUMNS = ("day", "runs", "failed runs", "streams", "errors")


def read_runs(lines: Iterable[str]) -> tuple[list[Run], int]:
    """Return the runs in a file of results, and the number of lines that are something else."""
    runs, others = list[Run](), 0
    for line in lines:
        try:
            runs += [Run.from_json(line)] if line.strip() else []
        except ValueError:
            others += 1
    return runs, others


def rollup(runs: Iterable[Run], now: datetime, days: int) -> str:
    """Return the results of the last days.

    Args:
        runs: the runs, in any order.
        now: the time, with its zone.
        days: how many days before it count.
    """
    since = now - timedelta(days=days)
    recent = sorted((run for run in runs if run.began_at > since), key=lambda run: run.began_at)
    parts = [f"# Smoke tests from {since:%Y-%m-%d} to {now:%Y-%m-%d}"]
    parts += (
        "\n".join(_section(url, [run for run in recent if run.url == url]))
        for url in dict.fromkeys(run.url for run in recent)
    )
    if not recent:
        parts.append("There are no results.")
    return "\n\n".join(parts)


def _section(url: str, runs: Sequence[Run]) -> Iterator[str]:
    columns = [
        *_COLUMNS,
        *(
            f"{name.replace('_', ' ')} {point}"
            for name in MEASURES
            for point in ("p50", "p95", "max")
        ),
    ]
    yield f"## {_cell(url)}"
    yield ""
    yield f"| {' | '.join(columns)} |"
    yield f"|---{'|---:' * (len(columns) - 1)}|"
    days = dict.fromkeys(f"{run.began_at:%Y-%m-%d}" for run in runs)
    for day in days:
        yield _row(day, [run for run in runs if f"{run.began_at:%Y-%m-%d}" == day])
    yield _row("**all**", runs)
    reasons = Counter[str]()
    for run in runs:
        reasons.update(run.errors)
    if reasons:
        yield ""
        yield "Errors: " + ", ".join(f"{_cell(reason)} {n}" for reason, n in reasons.most_common())
    exceeded = [f"- {run.at}: {_cell(line)}" for run in runs for line in run.exceeded]
    if exceeded:
        yield from ("", "Exceeded:", "", *exceeded)


def _row(name: str, runs: Sequence[Run]) -> str:
    cells = [
        name,
        str(len(runs)),
        str(sum(bool(run.exceeded) for run in runs)),
        str(sum(run.count for run in runs)),
        str(sum(run.failed for run in runs)),
    ]
    for measure in MEASURES:
        cells += map(shown, points([value for run in runs for value in getattr(run, measure)]))
    return f"| {' | '.join(cells)} |"


def _cell(text: object) -> str:
    """Return a text that cannot end a cell, a line or a heading of Markdown."""
    return " ".join(str(text).replace("|", "\\|").split())
