"""Fixtures of tests of channels in Redis."""

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest

from sse_middleware._once import ValuesOfOwners
from sse_middleware.channels import Publisher, close_channels, unread
from sse_middleware.stores import installed as installed_in_stores
from sse_middleware.stores.installed import RedisAddress

if TYPE_CHECKING:
    from tests.support.redis_server import RedisServer  # needs an extra


@pytest.fixture
def server(running_server: "RedisServer") -> "RedisServer":
    running_server.client.flushall()
    return running_server


@pytest.fixture
async def publisher(server: "RedisServer") -> AsyncGenerator[Publisher]:
    async with Publisher(server.patient_url) as publisher:
        yield publisher


@pytest.fixture
async def closed_channels() -> AsyncGenerator[None]:
    """Close the connections that the readers of a test have shared."""
    yield
    await close_channels()


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> ValuesOfOwners[object, RedisAddress]:
    """Hide the middleware objects that other tests have left."""
    values = ValuesOfOwners[object, RedisAddress]()
    for module in (installed_in_stores, unread):
        monkeypatch.setattr(module, "INSTALLED", values)
    return values
