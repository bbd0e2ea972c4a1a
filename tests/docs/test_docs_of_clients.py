"""Snippets for a server that is a client of OpenAI, whose package only the environment e2e has."""

import pytest

from tests.docs.snippets import PAGES, snippets_of
from tests.docs.test_docs import RUN_ELSEWHERE, run

pytest.importorskip("openai", reason="only the environment with clients has openai")

SNIPPETS = [
    pytest.param(snippet.text, id=snippet.name)
    for path in PAGES
    if path.stem not in RUN_ELSEWHERE
    for snippet in snippets_of(path, "python")
    if "from openai" in snippet.text
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet: str) -> None:
    run(snippet)
