"""The server of a page of the documents: its first Python snippet, or the one that is named."""

import os
from typing import Any

from tests.docs.snippets import snippets

_page = os.environ.get("DOCS_PAGE", "browser.md")
_number = int(os.environ.get("DOCS_SNIPPET", "0"))
_names: dict[str, Any] = {"__name__": "docs"}
exec(compile(snippets("python", _page)[_number], _page, "exec"), _names)
app = _names["app"]
