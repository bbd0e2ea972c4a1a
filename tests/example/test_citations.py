"""Citation marks are removed from a text that arrives in pieces."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from example_app.citations import MarkRemover, remove_marks

TEXTS = st.text(st.sampled_from("ab1234 \n[].")) | st.text()


def removed(pieces: list[str]) -> list[str]:
    remover = MarkRemover()
    return [*map(remover.feed, pieces), remover.flush()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A fact. [1] Another. [12]", "A fact. Another."),
        ("[1]", ""),
        ("a[1][2] b", "a b"),
        ("a\n[1]\nb", "a\nb"),
        ("list[0", "list[0"),
        ("[12345] [a] []", "[12345] [a] []"),
        ("[1[2]]", "[1]"),
    ],
)
def test_a_mark_is_removed_with_the_space_before_it(text: str, expected: str) -> None:
    assert remove_marks(text) == expected
    assert "".join(removed(list(text))) == expected


@given(TEXTS, st.lists(st.integers(0, 20)))
def test_any_pieces_give_the_text_without_marks(text: str, places: list[int]) -> None:
    cuts = [0, *sorted(places), max([len(text), *places])]
    pieces = [text[start:end] for start, end in itertools.pairwise(cuts)]
    assert "".join(removed(pieces)) == remove_marks(text)


def test_text_that_cannot_become_a_mark_is_passed_on_at_once() -> None:
    pieces = ["The ", "list ", "x[1", "a] ", "is. ", "[1] ", "End."]
    assert removed(pieces) == ["The", " list", " x", "[1a]", " is.", "", " End.", ""]


def test_only_a_few_characters_are_held_back() -> None:
    remover = MarkRemover()
    for piece in ("[", "1", "2", "3", "4"):
        assert remover.feed(piece) == ""
    assert remover.feed("5") == "[12345"
    assert not re.search(r"\d", remover.flush())
