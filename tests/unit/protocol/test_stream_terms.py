"""The terms of a stream follow from the settings, the mark and the kind of client."""

from typing import Any

import pytest

from sse_middleware import Options
from sse_middleware.protocol.client_kinds import ClientKind
from sse_middleware.protocol.stream_terms import StreamTerms

EVENTSOURCE, PLAIN, OPENAI = ClientKind.EVENTSOURCE, ClientKind.PLAIN, ClientKind.OPENAI


def terms(client_kind: ClientKind, **settings: Any) -> StreamTerms:
    return StreamTerms.from_options(Options.from_environ({}, **settings), client_kind)


def test_the_terms_of_an_eventsource_are_those_of_the_settings() -> None:
    assert terms(EVENTSOURCE, event_prefix="sse-", retry_ms=100) == StreamTerms(
        max_seconds=60.0,
        rotates=False,
        heartbeat_interval=5.0,
        silence_threshold=15.0,
        event_prefix="sse-",
        retry_ms=100,
    )


@pytest.mark.parametrize(
    ("client_kind", "settings", "max_seconds"),
    [
        (EVENTSOURCE, {}, 60),
        (OPENAI, {}, 60),
        (PLAIN, {}, None),
        (PLAIN, {"stream_max_seconds": 60.0}, 60),
        (PLAIN, {"stream_max_seconds": None}, None),
        (EVENTSOURCE, {"stream_max_seconds": None}, None),
        (OPENAI, {"stream_max_seconds": 7.0}, 7),
    ],
)
def test_a_client_that_cannot_be_notified_has_a_cap_only_if_it_is_set(
    client_kind: ClientKind, settings: dict[str, Any], max_seconds: float | None
) -> None:
    assert terms(client_kind, **settings).max_seconds == max_seconds


@pytest.mark.parametrize("variable", ["SSE_STREAM_MAX_SECONDS", "STREAM_MAX_SECONDS"])
def test_a_variable_sets_the_cap_of_a_plain_client(variable: str) -> None:
    options = Options.from_environ({variable: "60"})
    assert StreamTerms.from_options(options, PLAIN).max_seconds == 60


@pytest.mark.parametrize(
    ("client_kind", "settings", "rotates"),
    [
        (EVENTSOURCE, {}, False),
        (EVENTSOURCE, {"cap_action": "rotate"}, True),
        (EVENTSOURCE, {"cap_action": "complete"}, False),
        (PLAIN, {"cap_action": "rotate"}, False),
        (OPENAI, {"cap_action": "rotate"}, False),
    ],
)
def test_only_an_eventsource_rotates_and_only_if_it_is_set(
    client_kind: ClientKind, settings: dict[str, Any], *, rotates: bool
) -> None:
    assert terms(client_kind, **settings).rotates is rotates


@pytest.mark.parametrize(
    ("client_kind", "settings", "expected"),
    [
        (PLAIN, {}, (None, None)),
        (OPENAI, {}, (None, None)),
        (PLAIN, {"silence_threshold": 30}, (None, 30)),
        (EVENTSOURCE, {}, (5, 15)),
    ],
)
def test_without_comments_a_plain_client_gets_no_heartbeats(
    client_kind: ClientKind, settings: dict[str, Any], expected: tuple[float | None, float | None]
) -> None:
    found = terms(client_kind, comment_style="off", **settings)
    assert (found.heartbeat_interval, found.silence_threshold) == expected


@pytest.mark.parametrize(("linger", "retry_ms"), [(0, 2000), (1.5, 1500), (15, 2000)])
def test_a_client_reconnects_before_its_stream_stops_lingering(
    linger: float, retry_ms: int
) -> None:
    assert terms(EVENTSOURCE, linger_seconds=linger).retry_ms == retry_ms
