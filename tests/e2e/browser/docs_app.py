"""The server of docs/browser.md."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[3] / "docs" / "browser.md"


def snippets(language: str) -> list[str]:
    """Return the snippets of the page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)


_names: dict[str, Any] = {"__name__": "docs"}
exec(compile(snippets("python")[0], str(DOCS), "exec"), _names)
app = _names["app"]
