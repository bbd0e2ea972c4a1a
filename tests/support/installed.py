"""The middleware objects that a process knows of, without those of other tests."""

from collections.abc import Iterator

import pytest

from sse_middleware import middleware
from sse_middleware._once import ValuesOfOwners
from sse_middleware.channels import unread
from sse_middleware.stores import installed
from sse_middleware.stores.installed import RedisAddress


@pytest.fixture(scope="module", autouse=True)
def no_earlier_middleware() -> Iterator[None]:
    """Hide the middleware objects of earlier modules: channels would use their Redis."""
    values = ValuesOfOwners[object, RedisAddress]()
    with pytest.MonkeyPatch.context() as patched:
        for module in (installed, unread, middleware):
            patched.setattr(module, "INSTALLED", values)
        yield
