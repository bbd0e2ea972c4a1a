from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_LONGEST = ("test_benchmarks.py", "test_servers.py", "test_clients.py", "test_matrix.py")
"""The files that take longest: they begin first, so that none of them runs last and by itself."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
    items.sort(key=lambda item: item.path.name not in _LONGEST)
