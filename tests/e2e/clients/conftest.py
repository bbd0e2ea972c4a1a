"""Workers whose answers clients continue by name."""

from collections.abc import Iterator

import pytest

from tests.support.named_runs import NamedRuns, named_runs


@pytest.fixture(scope="package")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NamedRuns]:
    with named_runs(tmp_path_factory.mktemp("named")) as running:
        yield running
