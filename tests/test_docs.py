"""What the documents promise: their snippets run, their tables and commands are true."""

import re
import sys
from pathlib import Path

import pytest

from sse_middleware.__main__ import markdown
from sse_middleware.arguments import OptionArguments
from sse_middleware.options import SETTINGS

ROOT = Path(__file__).parent.parent
SNIPPETS = [
    pytest.param(snippet, id=f"{path.stem}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, snippet in enumerate(
        re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
    )
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(snippet: str) -> None:
    for extra in ("fastapi", "redis"):
        if extra in snippet:
            pytest.importorskip(extra, reason=f"the minimal environment has no {extra}")
    exec(compile(snippet, "snippet", "exec"), {"__name__": "snippet"})


def test_ci_calls_the_test_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"^Run the tests:\n\n```sh\n(.*?)\n```", readme, re.MULTILINE)
    assert found is not None
    assert found[1] in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_settings_page_has_the_table_that_the_code_makes() -> None:
    assert markdown() in (ROOT / "docs" / "settings.md").read_text()


def test_every_setting_is_an_argument_that_type_checkers_know() -> None:
    assert OptionArguments.__annotations__.keys() == SETTINGS.keys()


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_oldest_python_of_the_metadata_is_the_oldest_that_runs() -> None:
    assert sys.version_info >= (3, 11)
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
