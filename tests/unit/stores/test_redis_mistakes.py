"""Mistakes in the address of Redis: the log and the errors name the address, cause and remedy."""

import logging

import pytest

from tests.support.redis_server import RedisServer
from tests.support.waiting import until

pytest.importorskip("redis")
from redis.exceptions import ConnectionError as LostConnectionError

from sse_middleware import StoreError
from sse_middleware.channels import BlockingPublisher
from sse_middleware.channels.publish_batch import unknown_outcome
from sse_middleware.errors import ConfigurationError
from sse_middleware.stores.redis import RedisStore

pytestmark = pytest.mark.anyio

REMEDY = "Streams continue but cannot be resumed on other workers. Check SSE_REDIS_URL."
DATABASE = (
    "allowed is a URL whose path is the number of a database, such as redis://localhost:6379/0"
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


MISTAKES: dict[str, tuple[str, str]] = {
    "no server": ("redis://127.0.0.1:1", "Cannot reach Redis at 127.0.0.1:1 (ConnectionError: "),
    "no such socket": (
        "unix:///none/redis.sock",
        "Cannot reach Redis at /none/redis.sock (ConnectionError: ",
    ),
    "no such host": (
        "redis://redis.invalid",
        "Cannot reach Redis at redis.invalid:6379 (ConnectionError: ",
    ),
    "no such database": (
        "redis://127.0.0.1:{port}/99",
        (
            "Redis at 127.0.0.1:{port} has no database of this number, the path of the URL "
            "(DB index is out of range). "
        ),
    ),
    "TLS of a server without": (
        "rediss://127.0.0.1:{port}?socket_timeout=0.5",
        (
            "Redis at 127.0.0.1:{port} (TLS) does not answer (TimeoutError: is TLS off there, so "
            "that the URL begins with redis://?). "
        ),
    ),
    "a cluster of one server": (
        "redis+cluster://127.0.0.1:{port}",
        "Cannot reach Redis at 127.0.0.1:{port} (RedisClusterException: ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_wrong_address_is_logged_with_its_cause_and_remedy(
    mistake: str, running_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    url, message = (text.format(port=running_server.port) for text in MISTAKES[mistake])
    store = RedisStore(url)
    with pytest.raises(StoreError):
        await store.find("a")
    await until(lambda: bool(caplog.messages), "a warning")
    await store.close()
    (warning,) = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert warning.startswith(message)
    assert warning.endswith(REMEDY)


@pytest.mark.parametrize(
    "url", ["redis://user:geheim@localhost/main", "redis://:geheim@localhost:6379/0/1"]
)
async def test_a_name_in_place_of_a_database_is_explained(url: str) -> None:
    for make in (lambda: RedisStore(url), lambda: BlockingPublisher(url).publish("a", "b", 1)):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert str(caught.value).endswith(DATABASE)
        assert "geheim" not in str(caught.value)


def test_the_error_of_a_publisher_has_the_address_and_the_remedy() -> None:
    error = unknown_outcome(LostConnectionError("Error 111 connecting to 127.0.0.1:1."))
    assert str(error) == (
        "publish: ConnectionError: Error 111 connecting to 127.0.0.1:1; check SSE_REDIS_URL or the "
        "URL; it is not known whether the event is in its channel; under a key, publish it again"
    )
