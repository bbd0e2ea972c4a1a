"""Instruction counts in a file, and the comparison with such a file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.bench import Table
from benchmarks.harness.report import markdown_rows, number, section, versions

PREFIX = "instructions: "
TOLERATED_PERCENT = 3.0
"""The change that one commit may cause. Two runs of the same code differ by less than 0.5 %."""
_FORMAT = 1


def write_counts(path: Path, tables: list[Table], sizes: str) -> None:
    """Write the instruction counts of `tables` as JSON.

    Args:
        path: of the file, which is replaced.
        tables: of all suites; those of others are left out.
        sizes: `full` or `quick`.
    """
    content = {
        "format": _FORMAT,
        "sizes": sizes,
        "versions": versions(),
        "instructions": _counts(tables),
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_counts(path: Path) -> dict[str, Any]:
    """Return the content of a file that `write_counts` has written.

    Raises:
        ValueError: the file has another content.
    """
    content = json.loads(path.read_text())
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} has no instruction counts of format {_FORMAT}")
    return content


def comparison_text(title: str, before: dict[str, Any], tables: list[Table], sizes: str) -> str:
    """Return a table of all counts that `before` and `tables` have in common."""
    rows = list(_changes(before["instructions"], _counts(tables)))
    heads = ["operation", "contestant", "before", "after", "change", "verdict"]
    return section(title, [*_differences(before, sizes), *markdown_rows(heads, rows)])


def _counts(tables: list[Table]) -> dict[str, dict[str, float]]:
    return {
        table.name.removeprefix(PREFIX): {
            contestant: round(samples[0], 1) for contestant, samples in table.samples.items()
        }
        for table in tables
        if table.name.startswith(PREFIX)
    }


def _changes(
    before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]
) -> Iterator[list[str]]:
    for operation, counts in after.items():
        for contestant, count in counts.items():
            earlier = before.get(operation, {}).get(contestant)
            if earlier:
                percent = (count / earlier - 1) * 100
                figures = [number(earlier), number(count), f"{percent:+.2f} %"]
                yield [operation, contestant, *figures, _verdict(percent)]


def _verdict(percent: float) -> str:
    if abs(percent) <= TOLERATED_PERCENT:
        return "same"
    return "**more**" if percent > 0 else "less"


def _differences(before: dict[str, Any], sizes: str) -> Iterator[str]:
    """Return a paragraph about the differences that make the counts hard to compare."""
    now = {**versions(), "sizes": sizes}
    then = {**before["versions"], "sizes": before["sizes"]}
    changed = [
        f"{name} {then.get(name)} → {now.get(name)}"
        for name in sorted(now.keys() | then.keys())
        if now.get(name) != then.get(name)
    ]
    if changed:
        yield f"Not like for like: {', '.join(changed)}."
        yield ""
