"""The server of docs/traces.md."""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[3] / "docs" / "traces.md"

_names: dict[str, Any] = {"__name__": "docs"}
(_snippet,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
exec(compile(_snippet, str(DOCS), "exec"), _names)
app = _names["app"]
