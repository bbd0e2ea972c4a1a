"""A rollout to some clients: by a function, a list of users, or a percentage."""

from typing import Any

import pytest

from sse_middleware import ConfigurationError, SSEMiddleware
from tests.support.asgi import handle, stream_of
from tests.support.middleware import marking

pytestmark = pytest.mark.anyio


def user(scope: Any) -> str | None:
    return dict(scope["headers"]).get(b"x-user", b"").decode() or None


def is_beta(scope: Any) -> bool | None:
    return {b"beta": True, b"old": False}.get(dict(scope["headers"]).get(b"x-group", b""))


async def share(headers: list[Any] | None = None, **options: Any) -> float:
    """Return the share of a hundred clients for which the middleware acts."""
    app = marking(stream_of(b"data: x\n\n"), **options)
    acts = 0
    for number in range(100):
        sent = [(b"authorization", b"Bearer %d" % number), *(headers or [])]
        acts += b"x-stream-id" in (await handle(app, headers=sent)).headers
    return acts / 100


ANN = [(b"x-user", b"ann")]
EVE = [(b"x-user", b"eve")]


@pytest.mark.parametrize(
    ("headers", "expected"), [(ANN, 1), (EVE, 0), (None, 0), ([(b"x-user", b"\xff")], 0)]
)
async def test_without_a_percentage_only_the_listed_users_are_in_the_rollout(
    headers: list[Any] | None, expected: float
) -> None:
    assert await share(headers, identify=user, rollout_users="ann,bob") == expected


async def test_users_are_added_to_a_percentage() -> None:
    options = {"identify": user, "rollout_users": ["ann"], "rollout_percent": 30}
    assert await share(ANN, **options) == 1
    assert 0.1 < await share(EVE, **options) < 0.5


async def test_the_users_may_be_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSE_ROLLOUT_USERS", "ann, bob")
    assert await share(ANN, identify=user) == 1
    assert await share(EVE, identify=user) == 0


@pytest.mark.parametrize(
    ("group", "percent", "expected"),
    [(b"beta", 0, 1), (b"old", 100, 0), (b"", 0, 0), (b"", 100, 1), (b"", None, 0)],
)
async def test_a_function_decides_first(group: bytes, percent: int | None, expected: float) -> None:
    options = {} if percent is None else {"rollout_percent": percent}
    assert await share([(b"x-group", group)], rollout=is_beta, **options) == expected


async def test_a_function_that_fails_leaves_the_client_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: object) -> bool:
        raise LookupError("no such user")

    assert await share(rollout=fail, rollout_percent=100) == 0
    assert "rollout(scope) or identify(scope) has failed" in caplog.text


async def test_users_without_identities_stop_the_start_up() -> None:
    app = SSEMiddleware(stream_of(), rollout_users=["ann"])
    with pytest.raises(ConfigurationError, match=r"rollout_users .* empty without identify="):
        await handle(app)
