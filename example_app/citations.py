"""The marks `[n]` of an answer: the passages that they stand for, and the text without them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from example_app.search import Passage

EXCERPT_CHARACTERS: Final = 200
MARK: Final = re.compile(r"\[([0-9]{1,4})\]")

_SPACED_MARK: Final = re.compile(rf"\s*{MARK.pattern}")
_MAY_BE_A_MARK: Final = re.compile(r"\s*(?:\[[0-9]{0,4})?\Z")


@dataclass(frozen=True, slots=True)
class Citation:
    """The passage that a mark `[number]` of an answer stands for."""

    number: int
    document_name: str
    excerpt: str
    url: str


def find_citations(text: str, sources: Mapping[int, Passage]) -> tuple[Citation, ...]:
    """Read the marks `[n]` out of a finished answer.

    Args:
        text: the answer.
        sources: the passage that each number stands for.

    Returns:
        One citation for each number that the text marks and the sources know, in the order in
        which the text first marks them.

    """
    marked = dict.fromkeys(int(number) for number in MARK.findall(text))
    return tuple(
        Citation(
            number=number,
            document_name=sources[number].document_name,
            excerpt=excerpt(sources[number].text),
            url=sources[number].url,
        )
        for number in marked
        if number in sources
    )


def excerpt(text: str) -> str:
    """Return the beginning of a text."""
    return textwrap.shorten(text, EXCERPT_CHARACTERS, placeholder=" …")


class MarkRemover:
    """Remove the marks from a text that arrives in pieces, each with the space before it.

    What may become a mark is held back until the next piece, so that a mark may be in several.
    """

    def __init__(self) -> None:
        """Begin a text."""
        self._held = ""

    def feed(self, piece: str) -> str:
        """Return what is known of the text after a further piece; it may be empty."""
        text = _SPACED_MARK.sub("", self._held + piece)
        found = _MAY_BE_A_MARK.search(text)
        end = len(text) if found is None else found.start()
        self._held = text[end:]
        return text[:end]

    def flush(self) -> str:
        """Return the rest of the text, after its last piece."""
        rest, self._held = self._held, ""
        return rest


def remove_marks(text: str) -> str:
    """Return a text without its marks."""
    return _SPACED_MARK.sub("", text)
