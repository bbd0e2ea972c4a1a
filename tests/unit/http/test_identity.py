"""The client address of a request, with trusted and with forged headers."""

import pytest

from sse_middleware.config.options import Options
from sse_middleware.http.identity import TrustedProxies
from sse_middleware.http.request import SSERequest
from tests.support.asgi import http_scope

PROXY = "10.0.0.1"
TRUSTED = ("10.0.0.0/8", "fd00::/8", "192.0.2.7")
CLIENT = "203.0.113.9"


def address(
    *headers: tuple[bytes, bytes],
    peer: object = (PROXY, 40000),
    trusted: tuple[str, ...] = TRUSTED,
) -> str | None:
    scope = http_scope(headers=list(headers), client=peer)
    return TrustedProxies(trusted).client_address(SSERequest(scope))


def xff(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-forwarded-for", value.encode("latin-1")) for value in values]


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"forwarded", value.encode("latin-1")) for value in values]


@pytest.mark.parametrize("header", [b"x-forwarded-for", b"forwarded"])
@pytest.mark.parametrize("peer", [CLIENT, "::1", "2001:db8::1", "127.0.0.1", "testclient"])
def test_headers_of_an_untrusted_proxy_are_ignored(header: bytes, peer: str) -> None:
    lie = (header, b"for=1.2.3.4" if header == b"forwarded" else b"1.2.3.4")
    assert address(lie, peer=(peer, 1)) == address(peer=(peer, 1))
    assert address(lie, peer=(PROXY, 1), trusted=()) == PROXY


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([CLIENT], CLIENT),
        ([f"1.2.3.4, {CLIENT}"], CLIENT),
        (["1.2.3.4", CLIENT], CLIENT),
        ([f"1.2.3.4, {CLIENT}, 10.9.9.9, 192.0.2.7"], CLIENT),
        ([f"{CLIENT}:4711"], CLIENT),
        ([f"  {CLIENT}\t"], CLIENT),
        ([f"::ffff:{CLIENT}"], CLIENT),
        (["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        (["[2001:db8:1:2::9]:80"], "2001:db8:1:2::/64"),
        (["[2001:db8:1:2::9]"], "2001:db8:1:2::/64"),
        ([f"{CLIENT}, fd00::7"], CLIENT),
        (["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
    ],
)
def test_the_last_hop_that_is_no_trusted_proxy_counts(values: list[str], expected: str) -> None:
    assert address(*xff(*values)) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("", ",", ",,,", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4"),
        *("1.2.3.4:", "1.2.3.4:999999", "[1.2.3.4", "::1]", "[]", ":", "::::", "1.2.3.4;", '"1.2"'),
        *("1.2.3.4\0", "1.2.3.4 5.6.7.8", "\xe9", "a" * 65_000, "0x7f.1", "localhost", "*"),
        "1.2.3.4, " + "9" * 5000,
    ],
)
def test_an_invalid_address_and_all_before_it_are_ignored(value: str) -> None:
    assert address(*xff(value)) == PROXY
    assert address(*xff(f"{CLIENT}, {value}")) == PROXY


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([f"for={CLIENT}"], CLIENT),
        ([f"For={CLIENT};proto=https;by=10.0.0.1"], CLIENT),
        ([f'for="{CLIENT}:4711"'], CLIENT),
        (['for="[2001:db8:1:2::9]:80";proto=http'], "2001:db8:1:2::/64"),
        ([f"for=1.2.3.4, proto=https; for={CLIENT}"], CLIENT),
        (["for=1.2.3.4", f"for={CLIENT}"], CLIENT),
        ([f'for="evil, for={CLIENT}'], CLIENT),
        (["for=unknown"], PROXY),
        (["for=_secret"], PROXY),
        ([f'for=1.2.3.4, host="a, for={CLIENT}"'], PROXY),
        ([f"for={CLIENT};for=1.2.3.4"], PROXY),
        (["proto=https"], PROXY),
        ([f"xfor={CLIENT}"], PROXY),
        (['for="\\1.2.3.4"'], PROXY),
    ],
)
def test_forwarded_is_parsed_by_its_grammar_from_the_end(values: list[str], expected: str) -> None:
    assert address(*forwarded(*values)) == expected


def test_two_headers_that_differ_are_both_not_believed() -> None:
    assert address(*xff(CLIENT), *forwarded(f"for={CLIENT}")) == CLIENT
    assert address(*xff(CLIENT), *forwarded("for=1.2.3.4")) == PROXY
    assert address(*xff(CLIENT), *forwarded("for=unknown")) == PROXY


def test_a_unix_socket_has_no_address_unless_its_header_is_trusted() -> None:
    for peer in (None, ("", 0)):
        assert address(*xff(CLIENT), peer=peer) is None
        assert address(*xff(CLIENT), peer=peer, trusted=("unix",)) == CLIENT
        assert address(peer=peer, trusted=("unix",)) is None
        assert address(*xff("unknown"), peer=peer, trusted=("unix",)) is None
    assert address(*xff("1.2.3.4"), peer=(CLIENT, 1), trusted=("unix",)) == CLIENT


def test_the_client_stays_if_the_server_has_already_replaced_the_proxy() -> None:
    # uvicorn does so with --proxy-headers, and keeps the header.
    assert address(*xff(f"1.2.3.4, {CLIENT}"), peer=(CLIENT, 0)) == CLIENT
    assert address(*xff(f"{CLIENT}, 10.0.0.2"), peer=("10.0.0.2", 0)) == CLIENT


def test_a_whole_network_of_ipv6_is_one_client_and_a_zone_does_not_matter() -> None:
    one = address(peer=("2001:db8::1", 1))
    assert one == address(peer=("2001:db8::ffff:1", 1)) == "2001:db8::/64"
    assert one != address(peer=("2001:db8:0:1::1", 1))
    assert address(peer=("fe80::1%eth0", 1)) == "fe80::/64"
    assert address(peer=(f"::ffff:{CLIENT}", 1)) == CLIENT


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ()),
        ("10.0.0.1", ("10.0.0.1",)),
        (" 10.0.0.0/8 , ::1 ,, unix ", ("10.0.0.0/8", "::1", "unix")),
        ("10.1.2.3/8", ("10.1.2.3/8",)),
    ],
)
def test_proxies_are_addresses_and_networks(text: str, value: tuple[str, ...]) -> None:
    assert Options.from_environ({"SSE_TRUSTED_PROXIES": text}).trusted_proxies == value
    TrustedProxies(value)


@pytest.mark.parametrize("text", ["*", "10.0.0.0/33", "proxy", "10.0.0", "::1/129", "1.2.3.4:80"])
def test_an_invalid_network_stops_the_start_up(text: str) -> None:
    with pytest.raises(ValueError, match=r"SSE_TRUSTED_PROXIES is .*, allowed is addresses"):
        Options.from_environ({"SSE_TRUSTED_PROXIES": text})
