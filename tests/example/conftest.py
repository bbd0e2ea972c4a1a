"""Fixtures of the tests of the example, most of which use real time and one client for a module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.installed import no_earlier_middleware

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2 as httpx

__all__ = ["no_earlier_middleware"]  # a fixture of all tests here


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """Use real time, because the example has an upstream with real sockets."""
    return "asyncio"


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """Run the example once for a module, because it indexes its corpus when it starts."""
    from tests.support.example_client import example_client  # noqa: PLC0415 - needs an extra

    async with example_client() as client:
        yield client
