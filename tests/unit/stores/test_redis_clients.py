"""Each client and URL of a user works, or is refused with a reason."""

import asyncio
import gc
import logging
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster as ClusterClient
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff
from starlette.types import Message, Receive, Scope, Send

from sse_middleware import ConfigurationError, SSEMiddleware, StoreError
from sse_middleware.channels import BlockingPublisher
from sse_middleware.stores.base import LogState
from sse_middleware.stores.redis import RedisStore
from sse_middleware.stores.redis.client import blocking_client, timeouts_for
from sse_middleware.testing import FakeStream, Reader
from sse_middleware.testing.streams import eventually
from tests.support.ports import free_port
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_sentinel import sentinel_of
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

PASSWORD = "geheim/&?"
QUOTED = "geheim%2F%26%3F"
COMMANDS = "+get +set +del +exists +eval +pexpire"
STREAMS = "+xadd +xread +xrange +xrevrange"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis with a socket, TLS, and users with minimal permissions."""
    directory = tmp_path_factory.mktemp("redis")
    certificate = make_certificate(directory)
    rules = ("~sse:*", f">{PASSWORD}", *COMMANDS.split(), *STREAMS.split())
    without_scripts = (rule for rule in rules if rule != "+eval")
    arguments = (
        *("--unixsocket", str(directory / "redis.sock")),
        *("--tls-port", str(free_port()), "--tls-auth-clients", "no"),
        *("--tls-cert-file", str(certificate), "--tls-key-file", str(certificate)),
    )
    with RedisServer(directory, *arguments) as server:
        for name, may in (("app", rules), ("poor", without_scripts)):
            server.client.execute_command("ACL", "SETUSER", name, "on", *may)  # type: ignore[no-untyped-call]
        yield server


@pytest.fixture
def server(running_server: RedisServer) -> RedisServer:
    running_server.client.flushall()
    return running_server


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Disable the garbage collector, so that reference cycles stay."""
    gc.disable()
    yield
    gc.enable()


def make_certificate(directory: Path) -> Path:
    """Return a file with a key and a certificate of 127.0.0.1, signed by itself."""
    program = shutil.which("openssl")
    assert program is not None, "openssl is not installed"
    path, key = directory / "certificate.pem", directory / "key.pem"
    subprocess.run(
        [
            *(program, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(key), "-out", str(path)),
        ],
        check=True,
        capture_output=True,
    )
    path.write_text(path.read_text() + key.read_text())
    return path


def setting(server: RedisServer, name: str) -> str:
    return str(server.client.config_get(name)[name])


def users(server: redis.Redis) -> set[str]:
    return {str(client["user"]) for client in server.client_list()} - {"default"}


async def check_all(
    here: RedisStore, there: RedisStore, server: RedisServer | RedisCluster
) -> None:
    """Write, follow, name and cancel from one process to another, and hold a lease."""
    stream = FakeStream(here)
    stream.log.set_name("chat")
    stream.write(3)

    async def named() -> bool:
        with suppress(StoreError):  # as long as it connects
            return await there.find_named("chat") is not None
        return False

    await eventually(named, bool, "the stream was to be found by its name")
    async with Reader(there, stream.id) as reader:
        await stream.producer.until_notified("followed")
        stream.write(2)
        await reader.until(5)
        assert await there.cancel(stream.id)
        await stream.producer.until_cancelled()

        async def inboxes() -> int:  # that only the threads of the leases make
            return sum("inbox" in key for key in server.all_keys())

        await eventually(inboxes, lambda count: count == 2, "both were to hold their leases")
        stream.log.end(LogState.CANCELLED)
        assert await reader.until_end() is LogState.CANCELLED
    assert reader.holes == []


async def check_url(url: str, server: RedisServer) -> None:
    here, there = RedisStore(url, timeout=30), RedisStore(url, timeout=30)
    async with aclosing_store(here), aclosing_store(there):
        await check_all(here, there, server)


def aclosing_store(store: RedisStore) -> AsyncExitStack:
    stack = AsyncExitStack()
    stack.push_async_callback(store.close)
    return stack


async def eventually_unconnected(*servers: RedisServer) -> None:
    """Wait until there are no connections, without help of the garbage collector."""

    async def connections() -> int:
        return sum(server.connections() for server in servers)

    await eventually(connections, lambda count: count == 0, "all were to be closed")


async def check_clients(make: Callable[[], Any], server: RedisServer) -> None:
    clients = [make(), make()]
    stores = [RedisStore(client=client, timeout=30) for client in clients]
    async with AsyncExitStack() as stack:
        for client, store in zip(clients, stores, strict=True):
            stack.push_async_callback(client.aclose)
            stack.push_async_callback(store.close)
        await check_all(stores[0], stores[1], server)


# URLs


async def test_a_unix_socket(server: RedisServer) -> None:
    await check_url(f"unix://{setting(server, 'unixsocket')}", server)


async def test_tls_with_a_certificate_of_ones_own(server: RedisServer) -> None:
    port, path = setting(server, "tls-port"), setting(server, "tls-cert-file")
    await check_url(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={path}", server)


async def test_closed_stores_and_publishers_leave_no_connection_to_a_cluster(
    tmp_path: Path, uncollected: None
) -> None:
    with RedisCluster(tmp_path) as cluster:
        here, there = RedisStore(cluster.patient_url), RedisStore(cluster.patient_url)
        async with aclosing_store(here), aclosing_store(there):
            await check_all(here, there, cluster)
        await eventually_unconnected(*cluster.nodes)
        publisher = BlockingPublisher(cluster.patient_url)
        for channel in "abcdef":
            assert await asyncio.to_thread(publisher.publish, channel, "step", 1)
        await asyncio.to_thread(publisher.close)
        await eventually_unconnected(*cluster.nodes)


async def test_tls_of_a_cluster(server: RedisServer, tmp_path: Path) -> None:
    certificate = Path(setting(server, "tls-cert-file"))
    with RedisCluster(tmp_path, certificate=certificate) as cluster:
        here, there = RedisStore(cluster.patient_url), RedisStore(cluster.patient_url)
        async with aclosing_store(here), aclosing_store(there):
            await check_all(here, there, cluster)


async def test_a_tls_server_with_an_unknown_certificate_is_out_of_reach(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore(f"rediss://app:{QUOTED}@127.0.0.1:{setting(server, 'tls-port')}")
    FakeStream(store).write()
    warning = await only_warning(caplog, "Cannot reach Redis")
    await store.close()
    assert "ConnectionError" in warning
    assert PASSWORD not in caplog.text
    assert QUOTED not in caplog.text


async def test_a_redis_user_with_minimal_permissions_works(server: RedisServer) -> None:
    url = f"redis://app:{QUOTED}@127.0.0.1:{server.port}"
    here, there = RedisStore(url, timeout=30), RedisStore(url, timeout=30)
    async with aclosing_store(here), aclosing_store(there):
        await check_all(here, there, server)
        assert users(server.client) == {"app"}
        assert all(one["user"] in ("app", "default") for one in server.client.client_list())
    assert server.client.acl_log() == []


async def test_a_missing_permission_is_counted_and_logged_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore(f"redis://poor:{QUOTED}@127.0.0.1:{server.port}")
    stream = FakeStream(store)
    for _ in range(20):
        stream.write()
        await asyncio.sleep(0.02)
    found = await store.find(stream.id)
    assert found is not None
    assert found.last == 20
    warning = await only_warning(caplog, "refuses a command")
    await store.close()
    assert "NoPermissionError" in warning
    assert "cannot be resumed on other workers. Check SSE_REDIS_URL." in warning


async def test_a_wrong_password_is_logged_with_its_address_and_remedy_and_without_itself(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisStore(f"redis://app:wrong-secret@127.0.0.1:{server.port}")
    FakeStream(store).write()
    warning = await only_warning(caplog, "Cannot log in")
    await store.close()
    assert warning.startswith(f"Cannot log in to Redis at 127.0.0.1:{server.port} (Auth")
    assert warning.endswith("cannot be resumed on other workers. Check SSE_REDIS_URL.")
    assert "wrong-secret" not in caplog.text


async def only_warning(caplog: pytest.LogCaptureFixture, text: str) -> str:
    """Return the one warning that contains a text, once it is logged."""

    async def found() -> list[str]:
        records = [one for one in caplog.records if one.levelno >= logging.WARNING]
        return [one.message for one in records if text in one.message]

    await eventually(found, bool, f"{text!r} was to be logged")
    (warning,) = await found()
    return warning


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:geheim@host:port",
        "redis://user:geheim@host?socket_timeout=soon",
        "redis+cluster://user:geheim@host:1,other:port",
        "redis+cluster://user:geheim@host/7",
        "redis+sentinel://user:geheim@host:26379",
        "redis+sentinel://user:geheim@host,other:port/main",
        "redis+sentinel://user:geheim@host/main/zero",
        "http://user:geheim@host",
    ],
)
async def test_a_url_that_is_none_is_refused_when_the_app_starts(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisStore(url)
    assert "geheim" not in str(caught.value)
    if not url.startswith("http:"):
        app, said = SSEMiddleware(_app, redis_url=url), list[Message]()
        with pytest.raises(ConfigurationError) as caught:
            await app({"type": "lifespan"}, _start_up, _into(said))
        assert "geheim" not in str(caught.value)
        assert said[0]["type"] == "lifespan.startup.failed"
        assert said[0]["message"].startswith("SSEMiddleware: SSE_REDIS_URL is ")
        assert "geheim" not in said[0]["message"]


def test_the_first_of_several_timeouts_in_a_url_counts() -> None:
    url = "redis://localhost?socket_timeout=2&socket_timeout=5"
    RedisStore(url)
    assert timeouts_for(url).read == 2


def test_a_timeout_in_a_url_does_not_bound_the_connects_of_a_thread() -> None:
    url = "redis://localhost?socket_timeout=15"
    client = blocking_client(url, None)
    options = client.connection_pool.connection_kwargs
    assert (options["socket_connect_timeout"], options["socket_timeout"]) == (1, 15)


async def _app(scope: Scope, receive: Receive, send: Send) -> None: ...


async def _start_up() -> Message:
    return {"type": "lifespan.startup"}


def _into(messages: list[Message]) -> Send:
    async def send(message: Message) -> None:
        messages.append(message)

    return send


# Clients


def client_of(server: RedisServer, **options: Any) -> Callable[[], Redis]:
    return lambda: Redis(host="127.0.0.1", port=server.port, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"decode_responses": True},
        {"protocol": 3},
        {"protocol": 2, "decode_responses": True, "encoding": "latin-1"},
        {"socket_timeout": 1.0},
        {"socket_timeout": None},
        {"retry": Retry(ExponentialBackoff(), 5)},
        {"health_check_interval": 1},
        {"single_connection_client": True},
        {"max_connections": 3},
        {"username": "app", "password": PASSWORD},
    ],
    ids=" ".join,
)
async def test_a_client_with_options_of_its_own(
    server: RedisServer, options: dict[str, Any]
) -> None:
    await check_clients(client_of(server, **options), server)


async def test_a_client_of_a_pool_that_waits(server: RedisServer) -> None:
    def make() -> Redis:
        return Redis.from_pool(BlockingConnectionPool(port=server.port, max_connections=3))

    await check_clients(make, server)


async def test_a_client_of_tls(server: RedisServer) -> None:
    port, path = int(setting(server, "tls-port")), setting(server, "tls-cert-file")

    def make() -> Redis:
        return Redis(
            port=port,
            ssl=True,
            ssl_ca_certs=path,
            ssl_min_version=ssl.TLSVersion.TLSv1_2,
            username="app",
            password=PASSWORD,
        )

    await check_clients(make, server)


async def test_a_client_of_a_sentinel(
    server: RedisServer, tmp_path: Path, uncollected: None
) -> None:
    with sentinel_of(server, tmp_path) as sentinel:
        watch = Sentinel([("127.0.0.1", sentinel.port)])  # type: ignore[no-untyped-call]
        login: dict[str, Any] = {"username": "app", "password": PASSWORD}
        await check_clients(lambda: watch.master_for("main", **login), server)
        for one in watch.sentinels:
            await one.aclose()
        await eventually_unconnected(sentinel)


async def test_a_url_of_sentinels_has_their_password_and_that_of_the_master(
    server: RedisServer, tmp_path: Path, uncollected: None
) -> None:
    users = (
        "user default off",
        "user observer on >geheim +ping +client +hello +sentinel",
        "user test on nopass +@all",
    )
    with sentinel_of(server, tmp_path, *users, user="test") as sentinel:
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"  # the first is out of reach
        url = f"redis+sentinel://app:{QUOTED}@{hosts}/main"
        await check_url(
            f"{url}?sentinel_username=observer&sentinel_password=geheim&socket_timeout=30", server
        )
        await eventually_unconnected(sentinel)


def reading_from_replicas() -> ClusterClient:
    client = ClusterClient(host="127.0.0.1")
    client.read_from_replicas = True  # as an argument it has another name in each version
    return client


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (redis.Redis, TypeError),
        (lambda: "redis://127.0.0.1", TypeError),
        (lambda: Redis(max_connections=2), ValueError),
        (reading_from_replicas, ValueError),
    ],
)
async def test_a_client_that_cannot_do_is_refused(
    make: Callable[[], Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"client .*allowed"):
        RedisStore(client=make())
