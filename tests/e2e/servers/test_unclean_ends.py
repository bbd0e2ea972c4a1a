"""A response by name ends cleanly only if the app has finished: on each server, through proxies."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import httpx2 as httpx
import pytest

from tests.e2e.servers.test_proxies import proxied
from tests.support.answers import numbers
from tests.support.named_runs import ANN, APP
from tests.support.proxies import PROXIES
from tests.support.redis_server import RedisServer
from tests.support.servers import SERVERS, serving
from tests.support.waiting import HANG_SECONDS

EVENTS = numbers(3)


class Site(NamedTuple):
    """An address, and those of the servers that respond there."""

    url: str
    servers: list[str]


@pytest.fixture(scope="module", params=[*SERVERS, *PROXIES])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Run a server, or two that share a Redis with a proxy in front of them."""
    directory = tmp_path_factory.mktemp("ends")
    with ExitStack() as stack:
        if request.param in PROXIES:
            shared = {"SSE_REDIS_URL": stack.enter_context(RedisServer(directory)).patient_url}
            both = stack.enter_context(proxied(request.param, directory, app=APP, **shared))
            yield Site(both.url, [worker.url for worker in both.workers])
        else:
            url = stack.enter_context(serving(request.param, APP, directory)).url
            yield Site(url, [url])


def read(method: str, url: str) -> tuple[bytes, bool]:
    """Make a request; return the body of its response, and whether it has ended cleanly."""
    received = b""
    with httpx.stream(method, url, headers=ANN, timeout=HANG_SECONDS) as response:
        assert response.status_code == 200
        try:
            for chunk in response.iter_raw():
                received += chunk
        except httpx.RemoteProtocolError:
            return received, False
    return received, True


@pytest.mark.parametrize("fails", [True, False])
def test_a_response_by_name_ends_as_that_of_the_app(site: Site, *, fails: bool) -> None:
    name = secrets.token_hex(4)
    end = "fails=3" if fails else "n=3"
    assert read("POST", f"{site.url}/answers/{name}?{end}") == (b"".join(EVENTS), not fails)
    for after in range(4):
        rest = b"".join(EVENTS[after:]), not fails
        assert read("GET", f"{site.url}/answers/{name}/live?after={after}") == rest


def test_a_client_that_follows_sees_the_end_of_the_app(site: Site) -> None:
    name = secrets.token_hex(4)
    opened = f"{site.url}/answers/{name}?fails=3&hold=1"
    with httpx.stream("POST", opened, headers=ANN, timeout=HANG_SECONDS) as first:
        received = next(first.iter_raw())
        assert received == EVENTS[0]
        live = f"{site.url}/answers/{name}/live?after=0"
        with httpx.stream("GET", live, headers=ANN, timeout=HANG_SECONDS) as follower:
            for server in site.servers:
                httpx.post(f"{server}/release/answer:{name}", timeout=HANG_SECONDS)
            with pytest.raises(httpx.RemoteProtocolError):
                for chunk in follower.iter_raw():
                    received += chunk
    assert received == EVENTS[0] + b"".join(EVENTS)
