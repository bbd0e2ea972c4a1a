"""The tables of the states are those of the architecture page."""

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sse_middleware.protocol.connection_state import (
    CONNECTION_TABLE,
    ConnectionInput,
    ConnectionPhase,
)
from sse_middleware.protocol.producer_state import PRODUCER_TABLE, ProducerInput, ProducerPhase

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"
TABLES: list[tuple[type[enum.Enum], type[enum.Enum], Mapping[Any, Any]]] = [
    (ProducerPhase, ProducerInput, PRODUCER_TABLE),
    (ConnectionPhase, ConnectionInput, CONNECTION_TABLE),
]


def words(name: str) -> str:
    return name.lower().replace("_", " ")


def cell(phase: enum.Enum, move: tuple[Any, ...] | None) -> str:
    """Return an action, its reason, and the next phase if it is another one."""
    if move is None:
        return ""
    action, following, *reason = move
    text = words(action.name)
    if reason and reason[0] is not None:
        text += f" ({words(reason[0].name)})"
    return text if following is phase else f"{text} → **{words(following.name)}**"


def markdown(
    phases: type[enum.Enum], inputs: type[enum.Enum], table: Mapping[Any, Any]
) -> list[str]:
    """Return the rows of a table."""
    rows = [
        ["input", *(words(phase.name) for phase in phases)],
        ["---"] * (len(phases) + 1),
        *(
            [words(given.name), *(cell(phase, table.get((phase, given))) for phase in phases)]
            for given in inputs
        ),
    ]
    return ["| " + " | ".join(row) + " |" for row in rows]


@pytest.mark.parametrize("table", TABLES, ids=["producer", "connection"])
def test_the_architecture_page_shows_the_table(
    table: tuple[type[enum.Enum], type[enum.Enum], Mapping[Any, Any]],
) -> None:
    expected = "\n".join(markdown(*table))
    assert expected in PAGE.read_text(), f"docs/architecture.md has to contain:\n{expected}"


@pytest.mark.parametrize("table", TABLES, ids=["producer", "connection"])
def test_each_input_has_an_effect_in_some_phase(
    table: tuple[type[enum.Enum], type[enum.Enum], Mapping[Any, Any]],
) -> None:
    phases, inputs, moves = table
    for given in inputs:
        columns = {phase for phase in phases if (phase, given) in moves}
        assert columns
        assert any(
            moves[phase, given][0].name != "IGNORE" or moves[phase, given][1] is not phase
            for phase in columns
        )
