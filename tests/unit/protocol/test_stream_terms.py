"""The terms of a stream follow from the settings, the mark and the kind of client."""

from typing import Any

import pytest

from sse_middleware import Options
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.stream_terms import StreamTerms

EVENTSOURCE, PLAIN, OPENAI, OFF = ClientKind


def terms(client_kind: ClientKind, *, marked: bool = False, **settings: Any) -> StreamTerms:
    options = Options.from_environ({}, **settings)
    return StreamTerms.from_options(options, client_kind, marked=marked)


def test_the_terms_of_an_eventsource_are_those_of_the_settings() -> None:
    assert terms(EVENTSOURCE, marked=True, event_prefix="sse-", retry_ms=100) == StreamTerms(
        max_seconds=60.0,
        rotates=False,
        heartbeat_interval=5.0,
        silence_threshold=15.0,
        event_prefix="sse-",
        retry_ms=100,
    )


@pytest.mark.parametrize(
    ("client_kind", "marked", "settings", "max_seconds"),
    [
        (EVENTSOURCE, False, {}, 60),
        (PLAIN, False, {}, None),
        (OPENAI, False, {}, None),
        (PLAIN, True, {}, 60),
        (PLAIN, False, {"stream_max_seconds": 60.0}, 60),
        (PLAIN, True, {"stream_max_seconds": None}, None),
        (OFF, True, {"stream_max_seconds": 7.0}, None),
    ],
)
def test_a_plain_client_has_a_cap_only_if_it_is_set_or_the_endpoint_is_marked(
    client_kind: ClientKind, *, marked: bool, settings: dict[str, Any], max_seconds: float | None
) -> None:
    assert terms(client_kind, marked=marked, **settings).max_seconds == max_seconds


@pytest.mark.parametrize(
    ("client_kind", "marked", "settings", "rotates"),
    [
        (EVENTSOURCE, False, {}, True),
        (EVENTSOURCE, True, {}, False),
        (EVENTSOURCE, True, {"cap_action": "rotate"}, True),
        (EVENTSOURCE, False, {"cap_action": "complete"}, False),
        (PLAIN, False, {"cap_action": "rotate"}, False),
        (OPENAI, True, {"cap_action": "rotate"}, False),
    ],
)
def test_only_an_eventsource_rotates_by_default_if_the_endpoint_is_not_marked(
    client_kind: ClientKind, *, marked: bool, settings: dict[str, Any], rotates: bool
) -> None:
    assert terms(client_kind, marked=marked, **settings).rotates is rotates


@pytest.mark.parametrize(("linger", "retry_ms"), [(0, 2000), (1.5, 1500), (15, 2000)])
def test_a_client_reconnects_before_its_stream_stops_lingering(
    linger: float, retry_ms: int
) -> None:
    assert terms(EVENTSOURCE, linger_seconds=linger).retry_ms == retry_ms
