import pytest

from tests.clock import VirtualClockLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Run async tests on a virtual clock; a module with real servers has its own fixture."""
    return "asyncio", {"loop_factory": VirtualClockLoop}


@pytest.fixture(autouse=True)
def _one_connection(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stream end with its connection; the tests of resuming say themselves what they need."""
    if "e2e" not in request.node.path.parts:
        monkeypatch.setenv("SSE_LINGER_SECONDS", "0")
        monkeypatch.setenv("SSE_CAP_ACTION", "complete")
