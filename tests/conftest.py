import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.clock import VirtualClockLoop
from tests.support.imports import missing_packages, packages_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.redis_server import RedisServer

# By default an example fails after 200 ms of real time, and a slow generator fails its test.
settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")

# No test verifies a certificate by the authorities of the system, and to load them takes 20 ms for
# each client of httpx.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-extras",
        action="store_true",
        help="leave out the modules that import a missing package, which are errors otherwise",
    )
    parser.addoption(
        "--only-importing",
        metavar="PACKAGE",
        help="run only the modules that import a package, directly or not",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if collection_path.suffix != ".py" or not collection_path.stem.startswith("test_"):
        return None
    wanted = config.getoption("--only-importing")
    if wanted and wanted not in packages_of(collection_path):
        return True
    if config.getoption("--without-extras") and missing_packages(collection_path):
        return True
    return None


def pytest_collection_finish() -> None:
    """Spare the garbage collections of the tests all objects that live until the end anyway."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture(scope="module", params=["new", "old", "valkey"])
def any_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[RedisServer]":
    """Run the Redis of the system, Redis 6.2, whose errors have other texts, and Valkey."""
    from tests.support.redis_server import (  # noqa: PLC0415 - needs an extra
        RedisServer,
        need_old_redis_server,
        need_valkey_server,
    )

    programs: dict[str, Callable[[], str]] = {
        "new": str,
        "old": need_old_redis_server,
        "valkey": need_valkey_server,
    }
    program = programs[request.param]()
    with RedisServer(tmp_path_factory.mktemp("redis"), program=program) as server:
        yield server
