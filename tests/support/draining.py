"""The end of a stream in a drain."""

import json

from tests.support.asgi import Exchange


def assert_shut_down(exchange: Exchange) -> None:
    assert exchange.ended
    assert exchange.names[-1] == "complete"
    assert json.loads(exchange.events[-1].data)["reason"] == "shutdown"
    assert exchange.last_event_id.endswith(".cut")
    assert exchange.retry is not None
    assert 1000 <= exchange.retry <= 2000
