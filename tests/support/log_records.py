"""The log records of streams."""

from typing import Any

import pytest


def stream_fields(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return the fields of the records of streams, in their order."""
    return [vars(record)["sse"] for record in caplog.records if hasattr(record, "sse")]
