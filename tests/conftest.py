import pytest

from tests.clock import VirtualClockLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Run async tests on a virtual clock; a module with real servers has its own fixture."""
    return "asyncio", {"loop_factory": VirtualClockLoop}
