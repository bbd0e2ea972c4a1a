"""The owner of a stream: only the identity that opened it can resume it."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sse_middleware import LogInfo, current_trace_id
from tests.support.asgi import body, handle, stream_start
from tests.support.resuming import (
    UNKNOWN,
    Counting,
    counted,
    id_of,
    left,
    opened,
    read,
    resumable,
    resume,
    returning,
    texts,
)

pytestmark = pytest.mark.anyio

Pair = tuple[bytes, bytes]


def user(scope: Scope) -> str | None:
    """Return the user of a request."""
    return dict(scope["headers"]).get(b"x-user", b"").decode() or None


def authorization(value: str) -> Pair:
    return (b"authorization", value.encode())


def cookie(value: str) -> Pair:
    return (b"cookie", value.encode())


async def assert_owned(
    app: Any, owner: list[Pair], same: list[list[Pair]], others: list[list[Pair]]
) -> None:
    """Check that only `same` can resume the stream that `owner` has opened."""
    whole = await read(app, *owner)
    for headers in same:
        again = await resume(app, id_of(whole, 2), *headers)
        assert texts(again) == ["3"], headers
    for headers in others:
        again = await resume(app, id_of(whole, 2), *headers)
        assert again.names[0] == "reset", headers
        assert texts(again) == counted(1, 3)


async def test_without_an_identity_the_event_id_alone_gives_access() -> None:
    same: list[list[Pair]] = [[], [authorization("Bearer b")], [cookie("session=1")]]
    await assert_owned(resumable(Counting(3)), [], same, [])


async def test_a_stream_that_was_opened_with_an_authorization_needs_the_same() -> None:
    await assert_owned(
        resumable(Counting(3)),
        [authorization("Bearer a")],
        [[authorization("Bearer a")], [authorization("Bearer a"), cookie("session=1")]],
        [[], [authorization("Bearer b")], [authorization("bearer a")], [cookie("a=Bearer a")]],
    )


async def test_the_named_cookies_determine_the_identity() -> None:
    await assert_owned(
        resumable(Counting(3), identity_cookies=("session", "tenant")),
        [cookie("theme=dark; session=1; tenant=a")],
        [
            [cookie("session=1; tenant=a")],
            [cookie("tenant=a;session=1")],
            [cookie("session=1"), cookie("tenant=a")],
            [cookie("session=1; tenant=a; theme=light; last=x")],
        ],
        [
            [],
            [cookie("session=2; tenant=a")],
            [cookie("session=1")],
            [cookie("session=1; tenant=b")],
            [cookie("session=1a; tenant=")],
            [cookie("Session=1; tenant=a")],
            [cookie("xsession=1; tenant=a")],
            [authorization("session=1; tenant=a")],
        ],
    )


async def test_cookie_values_that_are_equal_only_when_joined_differ() -> None:
    await assert_owned(
        resumable(Counting(3), identity_cookies=("a", "b")),
        [cookie("a=1; b=23")],
        [],
        [[cookie("a=12; b=3")], [cookie("a=123; b=")], [cookie("a=123")], [cookie("b=23")]],
    )


async def test_a_stream_opened_without_a_named_cookie_is_resumed_by_its_event_id() -> None:
    app = resumable(Counting(3), identity_cookies=("session",))
    await assert_owned(app, [cookie("theme=dark")], [[], [cookie("session=1")]], [])


async def test_an_authorization_has_precedence_over_cookies() -> None:
    await assert_owned(
        resumable(Counting(3), identity_cookies=("session",)),
        [cookie("session=1"), authorization("Bearer a")],
        [[authorization("Bearer a")], [authorization("Bearer a"), cookie("session=2")]],
        [[cookie("session=1")]],
    )


async def awaited_user(scope: Scope) -> str | None:
    """Return the user after a wait, as a function that asks a database does."""
    await asyncio.sleep(0)
    return user(scope)


class Users:
    """A directory of users."""

    async def __call__(self, scope: Scope) -> str | None:
        return await awaited_user(scope)


@pytest.mark.parametrize("identify", [user, awaited_user, partial(awaited_user), Users()])
async def test_the_result_of_identify_has_precedence(identify: Any) -> None:
    await assert_owned(
        resumable(Counting(3), identify=identify, identity_cookies=("session",)),
        [(b"x-user", b"ann"), authorization("Bearer a")],
        [[(b"x-user", b"ann"), authorization("Bearer refreshed")], [(b"x-user", b"ann")]],
        [[(b"x-user", b"bob"), authorization("Bearer a")], [authorization("Bearer a")], []],
    )


@pytest.mark.parametrize("identity", [None, ""])
async def test_no_other_source_counts_if_identify_returns_no_identity(identity: str | None) -> None:
    """The `Authorization` may be that of a gateway, which all users share."""
    shared = [authorization("Bearer gateway"), cookie("session=1")]
    app = resumable(Counting(3), identify=lambda _scope: identity, identity_cookies=("session",))
    await assert_owned(app, shared, [shared, [], [authorization("Bearer b")]], [])


async def test_a_user_does_not_get_the_stream_of_another_by_what_both_send() -> None:
    shared = authorization("Bearer gateway")
    await assert_owned(
        resumable(Counting(3), identify=user),
        [(b"x-user", b"ann"), shared],
        [[(b"x-user", b"ann")]],
        [[shared], [(b"x-user", b"bob"), shared], [(b"x-user", b"Bearer gateway")]],
    )


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "Bearer", "bearer ", "Basic", "Token ", "Bearer undefined", "Bearer null"),
        *("bearer  None", "Bearer [object Object]", "Bearer NaN", "undefined", "null", '""'),
        *("Bearer false", 'Bearer "undefined"', "Bearer nil"),
    ],
)
async def test_a_value_that_all_clients_without_one_send_is_no_identity(value: str) -> None:
    app = resumable(Counting(3), identity_cookies=("session",))
    await assert_owned(app, [authorization(value)], [[], [authorization("Bearer b")]], [])
    session = cookie("session=1")
    await assert_owned(app, [authorization(value), session], [[session]], [[]])


@pytest.mark.parametrize("value", ["", " ", "undefined", "null", '""', '"null"', "None"])
async def test_a_cookie_without_a_value_is_no_identity(value: str) -> None:
    app = resumable(Counting(3), identity_cookies=("session", "tenant"))
    for header in (f"session={value}", f"session={value}; tenant=", f"tenant={value}"):
        await assert_owned(app, [cookie(header)], [[], [cookie("session=b")]], [])
    mixed = cookie(f"session={value}; tenant=a")
    await assert_owned(app, [mixed], [[mixed]], [[], [cookie("tenant=a")]])


@pytest.mark.parametrize(
    "value", ["key", "Bearer a", "Basic Og==", "Bearer 0", "none-of-it", "x y"]
)
async def test_any_other_value_is_an_identity(value: str) -> None:
    app = resumable(Counting(3), identity_cookies=("session",))
    await assert_owned(app, [authorization(value)], [[authorization(value)]], [[]])
    await assert_owned(app, [cookie(f"session={value}")], [[cookie(f"session={value}")]], [[]])


async def test_the_same_text_from_another_source_is_another_identity() -> None:
    await assert_owned(
        resumable(Counting(3), identify=user, identity_cookies=("session",)),
        [(b"x-user", b"1")],
        [],
        [[authorization("1")], [cookie("session=1")]],
    )


def failing(scope: Scope) -> str | None:
    if (b"x-fail", b"1") in scope["headers"]:
        raise ValueError("broken")
    return "ann"


async def awaited_failing(scope: Scope) -> str | None:
    return failing(scope)


@pytest.mark.parametrize("identify", [failing, awaited_failing])
async def test_nothing_is_kept_or_resumed_if_identify_fails(
    identify: Any, caplog: pytest.LogCaptureFixture
) -> None:
    counting = Counting(3)
    app = resumable(counting, identify=identify)
    fail = (b"x-fail", b"1")
    whole = await read(app, fail)
    assert whole.names == ["start", *["message"] * 3, "complete"]
    assert (await resume(app, id_of(whole, 2))).names[0] == "reset"
    whole = await read(app)
    assert texts(await resume(app, id_of(whole, 2))) == ["3"]
    assert (await resume(app, id_of(whole, 2), fail)).names[0] == "reset"
    assert "identify(scope) has failed" in caplog.text


# Precedence


async def yes_later(scope: Scope, info: LogInfo) -> bool:
    await asyncio.sleep(0.1)
    return True


async def no_later(scope: Scope, info: LogInfo) -> bool:
    await asyncio.sleep(0.1)
    return False


async def fails_later(scope: Scope, info: LogInfo) -> bool:
    await asyncio.sleep(0.1)
    raise ValueError


def fails(scope: Scope, info: LogInfo) -> bool:
    raise ValueError


@pytest.mark.parametrize(
    ("authorize", "allowed"),
    [
        (lambda _scope, _info: True, True),
        (lambda _scope, _info: False, False),
        (lambda _scope, _info: None, False),
        (yes_later, True),
        (no_later, False),
        (fails, False),
        (fails_later, False),
    ],
)
async def test_the_operator_has_the_last_word_on_a_resume(
    authorize: Callable[[Any, Any], bool | Awaitable[bool]],
    caplog: pytest.LogCaptureFixture,
    *,
    allowed: bool,
) -> None:
    counting = Counting(3)
    app = resumable(counting, authorize_resume=authorize)
    whole = await read(app)
    again = await resume(app, id_of(whole, 2))
    assert texts(again) == (["3"] if allowed else counted(1, 3))
    assert again.names[0] == ("start" if allowed else "reset")
    failed = authorize in (fails, fails_later)
    assert ("authorize_resume has failed" in caplog.text) is failed


async def test_authorize_gets_the_request_and_the_facts_about_the_stream() -> None:
    asked: list[tuple[Any, LogInfo]] = []

    def authorize(scope: Scope, info: LogInfo) -> bool:
        asked.append((scope, info))
        return True

    app = resumable(Counting(3), authorize_resume=authorize)
    whole = await read(app, path="/a")
    assert asked == []
    await resume(app, UNKNOWN, path="/a")
    await resume(app, id_of(whole, 2), path="/b")
    assert asked == []
    await resume(app, id_of(whole, 2), (b"x-user", b"ann"), path="/a")
    ((scope, info),) = asked
    assert (b"x-user", b"ann") in scope["headers"]
    assert (info.path, info.method) == ("/a", "GET")
    assert info.stream_id == whole.headers[b"x-stream-id"].decode()


async def test_authorize_is_not_called_for_a_post_with_another_body() -> None:
    asked: list[str] = []

    def authorize(scope: Scope, info: LogInfo) -> bool:
        asked.append(scope["method"])
        return True

    app = resumable(Counting(3), authorize_resume=authorize)
    named = [(b"accept", b"text/event-stream;events=named")]
    whole = await handle(app, method="POST", headers=named, body=b"1")
    held = [(b"last-event-id", id_of(whole, 2).encode())]
    assert (await handle(app, method="POST", headers=held, body=b"2")).names[0] == "reset"
    assert asked == []
    assert texts(await handle(app, method="POST", headers=held, body=b"1")) == ["3"]
    assert asked == ["POST"]


# The expiry of credentials


def wall_time() -> float:
    """Return the time of day by the clock of the loop."""
    return 1_800_000_000 + asyncio.get_running_loop().time()


@pytest.fixture
def _wall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", wall_time)


def token(scope: Scope) -> float | None:
    """Return the time at which the token of a request expires."""
    value = dict(scope["headers"]).get(b"x-expires")
    return None if value is None else float(value)


def expires_in(seconds: float) -> Pair:
    return (b"x-expires", b"%.3f" % (wall_time() + seconds))


@pytest.mark.usefixtures("_wall")
async def test_a_stream_ends_with_the_credentials_that_opened_it() -> None:
    counting = Counting(20)
    app = resumable(counting, expires_at=token, cap_action="complete")
    whole = await read(app, expires_in(4.5))
    assert texts(whole) == counted(1, 5)
    assert whole.names[-1] == "complete"
    assert '"reason":"duration_cap"' in whole.events[-1].data
    assert whole.last_event_id.endswith("-5.cut")
    assert counting.ends == ["cancelled"]


@pytest.mark.usefixtures("_wall")
async def test_the_cap_still_holds_if_credentials_expire_later() -> None:
    app = resumable(Counting(20), expires_at=token, cap_action="complete", stream_max_seconds=3.5)
    assert texts(await read(app, expires_in(100))) == counted(1, 4)
    assert texts(await read(app)) == counted(1, 4)


@pytest.mark.usefixtures("_wall")
@pytest.mark.parametrize("action", ["complete", "rotate"])
async def test_a_reader_ends_with_its_own_credentials(action: Any) -> None:
    counting = Counting(10)
    app = resumable(counting, expires_at=token, cap_action=action)
    async with left(app, 1) as first:
        short = await resume(app, first.last_event_id, expires_in(3.5))
        assert texts(short)[-1] in ("4", "5")
        assert short.names[-1] == ("complete" if action == "complete" else "heartbeat")
        assert short.ended
        async with returning(app, id_of(first, 1), expires_in(100)) as long:
            await long.until_end()
    assert texts(long) == counted(2, 10)
    assert counting.ends == ["finished"]


@pytest.mark.usefixtures("_wall")
@pytest.mark.parametrize("seconds", [0, -5])
async def test_expired_credentials_resume_nothing(seconds: float) -> None:
    counting = Counting(3)
    app = resumable(counting, expires_at=token, cap_action="complete")
    whole = await read(app)
    again = await resume(app, id_of(whole, 2), expires_in(seconds))
    assert again.names[0] == "reset"
    assert texts(again) in ([], ["1"])
    assert again.ended


def unknown(scope: Scope) -> float | None:
    raise ValueError


@pytest.mark.parametrize("expires_at", [unknown, lambda _: "2030-01-01"], ids=["error", "text"])
async def test_credentials_with_an_unknown_expiry_have_expired(
    caplog: pytest.LogCaptureFixture, expires_at: Any
) -> None:
    caplog.set_level(logging.ERROR)
    app = resumable(Counting(3), expires_at=expires_at, cap_action="complete")
    whole = await read(app)
    assert len(texts(whole)) <= 1
    assert whole.names[-1] == "complete"
    assert "expires_at(scope) has failed" in caplog.text


@pytest.mark.usefixtures("_wall")
async def test_a_plain_stream_ends_with_its_credentials_too() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 20):
            await send(body(b"data: %d\n\n" % number))
            await asyncio.sleep(1)
        await send(body(b"", more=False))

    kept = resumable(app, expires_at=token)
    exchange = await handle(kept, headers=[expires_in(2.5)])
    assert texts(exchange) == counted(1, 3)
    assert not exchange.ended


@pytest.mark.usefixtures("_wall")
async def test_a_slow_client_whose_credentials_expire_reads_no_more_of_an_ended_stream() -> None:
    ticks = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(stream_start())
        for number in range(1, 100):
            await send(body(b"data: %d\ndata: %b\n\n" % (number, b"x" * 5000)))
            await asyncio.sleep(0.01)
        await send(body(b"", more=False))

    kept = resumable(app, expires_at=token)
    async with opened(kept, expires_in(5)) as first:
        await first.until_count(2, "message")
        async with returning(kept, first.last_event_id, expires_in(100)) as reader:
            first.block()
            await reader.until_end()
        while ticks < 20:
            await asyncio.sleep(0.5)  # the clock stands still if a timer fires again and again
            ticks += 1
        first.unblock()
        await first.until_end()
    assert texts(reader)[-1].startswith("99")
    assert len(texts(first)) < 99
    assert first.names[-1] == "complete"


@pytest.mark.usefixtures("_wall")
async def test_credentials_that_last_end_nothing() -> None:
    app = resumable(Counting(3), expires_at=token)
    async with opened(app, expires_in(1000)) as first:
        await first.until_end()
    assert first.names[-1] == "complete"
    assert texts(first) == counted(1, 3)


@pytest.mark.parametrize("asks_for_trace_id", [False, True])
@pytest.mark.parametrize("options", [{}, {"max_streams": 9}], ids=str)
async def test_the_identity_is_that_of_the_headers_as_the_app_s_layers_have_set_them(
    options: dict[str, Any], *, asks_for_trace_id: bool
) -> None:
    """For example, a layer turns the token of a gateway into `Authorization`."""
    inner = Counting(3)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if asks_for_trace_id:
            assert current_trace_id()
        token = dict(scope["headers"]).get(b"x-gateway-token", b"none")
        scope["headers"] = [*scope["headers"], (b"authorization", token)]
        await inner(scope, receive, send)

    kept = resumable(app, **options)
    whole = await read(kept, (b"x-gateway-token", b"one"))
    again = await resume(kept, id_of(whole, 2), (b"x-gateway-token", b"other"))
    assert again.names[0] == "reset"
    assert texts(again) == counted(1, 3)
