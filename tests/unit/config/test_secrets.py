"""No password of a Redis URL and no secret is displayed: not by `config`, in errors or in logs."""

import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from sse_middleware import SSEMiddleware
from sse_middleware.__main__ import main
from sse_middleware.channels import BlockingPublisher, Publisher
from sse_middleware.config.options import Options
from sse_middleware.errors import redact_url
from sse_middleware.stores.redis import RedisStore

pytestmark = pytest.mark.anyio

PASSWORD = "swordfish"
URLS = [
    "redis://user:swordfish@localhost:1/0?db=1",
    "redis://:swordfish@localhost:1",
    "redis://localhost:1?password=swordfish&db=1",
    "redis://localhost:1/0?db=1&username=swordfish",
    "redis://localhost:1?%70assword=swordfish",
    "redis://localhost:1?password=at@swordfish",
    "redis://localhost:1?credentials=swordfish",
    "redis://localhost:1?ssl_password=swordfish",
    "rediss://user:swordfish@localhost:1?ssl_keyfile=swordfish",
    "unix://user:swordfish@/tmp/none.sock?password=swordfish",
    "redis+cluster://user:swordfish@localhost:1,localhost:2?password=swordfish",
    "redis://user:swordfish@localhost:port",
    "redis://:swordfish",
    "redis://:swordfish:1",
    "redis://:swordfish/x@localhost:1",
    "redis://:swordfish#x@localhost:1",
    "redis://:swordfish?x@localhost:1",
    "redis://:x?swordfish@localhost:1",
    "redis://:x://swordfish@localhost:1",
    "redis://localhost:1?swordfish",
    "redis://localhost:1/seven?password=swordfish",
    "redis://localhost:1?password=swordfish&socket_timeout=soon",
    "redis://user:swordfish@local host:1",
    "http://user:swordfish@localhost:1?password=swordfish",
    "user:swordfish@localhost:1",
]


async def start(url: str) -> None:
    async def app(*_: object) -> None: ...

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: dict[str, Any]) -> None:
        logging.getLogger("server").error("%s", message)

    await SSEMiddleware(app, redis_url=url)({"type": "lifespan"}, receive, send)


SURFACES: list[Callable[[str], object]] = [
    lambda url: Options.from_environ({"SSE_REDIS_URL": url}),
    lambda url: Options.from_environ({}, redis_url=url),
    RedisStore,
    Publisher,
    BlockingPublisher,
]


@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("surface", SURFACES)
def test_no_error_and_no_representation_contains_a_password(
    url: str, surface: Callable[[str], object], caplog: pytest.LogCaptureFixture
) -> None:
    try:
        shown = repr(surface(url))
    except ValueError:
        shown = traceback.format_exc()
    assert PASSWORD not in shown
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("url", URLS)
async def test_no_failed_start_contains_a_password(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with suppress(Exception):
        await start(url)
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("url", URLS)
def test_config_prints_no_password(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSE_REDIS_URL", url)
    main(["config"])
    printed = capsys.readouterr()
    assert "SSE_REDIS_URL" in printed.out + printed.err
    assert PASSWORD not in printed.out + printed.err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0?db=1&socket_timeout=2", None),
        ("redis://[::1]:6379", None),
        ("redis+cluster://a:1,b:2", None),
        ("unix:///tmp/redis.sock?db=1", None),
        ("", None),
        ("redis://user:x@host:1/0?db=1&password=y", "redis://***@host:1/0?db=1&password=***"),
    ],
)
def test_all_other_parts_of_a_url_are_displayed(url: str, shown: str | None) -> None:
    assert redact_url(url) == (url if shown is None else shown)
