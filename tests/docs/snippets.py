"""The snippets of the documents."""

import re
from pathlib import Path
from typing import NamedTuple

from tests.support.needs import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = (REPOSITORY / "README.md", *sorted(DOCS.glob("*.md")))
"""The documents: the README, and each page of the site."""


class Snippet(NamedTuple):
    """A block of code.

    Attributes:
        language: the word after the backticks.
        text: the code.
        name: the page and the number of the block, for the name of a test.
    """

    language: str
    text: str
    name: str


def snippets_of(path: Path, *languages: str) -> list[Snippet]:
    """Return the snippets of a page in some languages, in order."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    found = [(language, text) for language, text in blocks if language in languages]
    return [
        Snippet(language, text, f"{path.stem}-{number}")
        for number, (language, text) in enumerate(found)
    ]


def snippets(language: str, page: str = "browser.md") -> list[str]:
    """Return the texts of a page's snippets in a language, in order."""
    return [snippet.text for snippet in snippets_of(DOCS / page, language)]
