"""The example, with a provider that fails now and then, so that the dashboard shows fallbacks."""

import random

import httpx2

from example_app.app import create_app
from example_app.completions.in_process import InProcessTransport
from example_app.completions.qwen_service import create_qwen_service
from example_app.search import SearchIndex, load_passages

_FAILURES = 0.04


class _UnreliableTransport(httpx2.AsyncBaseTransport):
    """Carries requests to the service in this process, or fails as an overloaded service does."""

    def __init__(self) -> None:
        service = create_qwen_service(SearchIndex(load_passages()), token_delay_seconds=0.01)
        self._transport = InProcessTransport(service)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer, or fail."""
        if random.random() < _FAILURES:  # noqa: S311 - no secret
            return httpx2.Response(503)
        return await self._transport.handle_async_request(request)


app = create_app(
    token_delay_seconds=0.01,
    qwen=httpx2.AsyncClient(transport=_UnreliableTransport(), base_url="http://qwen", timeout=30),
)
