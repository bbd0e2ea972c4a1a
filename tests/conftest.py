from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.clock import VirtualClockLoop
from tests.support.imports import missing_packages, packages_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.redis_server import RedisServer

# By default an example fails after 200 ms of real time, and a slow generator fails its test.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-extras",
        action="store_true",
        help="leave out the modules that import a missing package, which are errors otherwise",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_test = collection_path.suffix == ".py" and collection_path.stem.startswith("test_")
    if is_test and config.getoption("--without-extras") and missing_packages(collection_path):
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "redis" in packages_of(item.path):
            item.add_marker(pytest.mark.redis)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Run async tests on a virtual clock; a module with real servers has its own fixture."""
    return "asyncio", {"loop_factory": VirtualClockLoop}


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[RedisServer]":
    """Run a Redis server for the tests of a module."""
    from tests.support.redis_server import RedisServer  # noqa: PLC0415 - needs an extra

    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
