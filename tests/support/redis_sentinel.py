"""A Sentinel, which watches a master and perhaps its replica."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.redis_cluster import wait_for_replica_of
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_until

SERVICE = "main"
AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A replica is in step when it begins, and not five seconds later."""


class WatchedMaster(NamedTuple):
    """The servers.

    Attributes:
        master: the first master.
        url: names the Sentinel.
    """

    master: RedisServer
    url: str


@contextmanager
def sentinel_of(
    master: RedisServer, directory: Path, *lines: str, user: str | None = None
) -> Iterator[RedisServer]:
    """Run a Sentinel, which lets a replica take over half a second after a failure.

    Args:
        master: the master that it watches.
        directory: of its configuration.
        *lines: more of its configuration.
        user: as for `RedisServer`.
    """
    configuration = directory / "sentinel.conf"
    configuration.write_text(
        f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1\n"
        f"sentinel down-after-milliseconds {SERVICE} 500\n"
        f"sentinel failover-timeout {SERVICE} 3000\n" + "".join(f"{line}\n" for line in lines)
    )
    with RedisServer(directory, "--sentinel", file=str(configuration), user=user) as sentinel:
        yield sentinel


def url_of(sentinel: RedisServer) -> str:
    """Return the URL of the master that a Sentinel watches."""
    return f"redis+sentinel://127.0.0.1:{sentinel.port}/{SERVICE}/0"


@contextmanager
def watched_master(directory: Path) -> Iterator[WatchedMaster]:
    """Run a master, its replica and a Sentinel."""
    with (
        RedisServer(directory, *AT_ONCE) as master,
        RedisServer(directory, "--replicaof", f"127.0.0.1 {master.port}"),
    ):
        wait_for_replica_of(master)
        with sentinel_of(master, directory) as sentinel:
            _wait_until_replica_is_known(sentinel)
            yield WatchedMaster(master, url_of(sentinel))


def _wait_until_replica_is_known(sentinel: RedisServer) -> None:
    """Wait until a Sentinel knows the replica as one that can take over."""

    def knows_it() -> bool:
        known = sentinel.client.sentinel_slaves(SERVICE)
        return [one["master-link-status"] for one in known] == ["ok"]

    wait_until(knows_it, "the sentinel has not found the replica")
