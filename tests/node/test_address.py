"""Addresses: what is one, where a node listens, and how names become numbers."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.address import default_bind, is_ipv6, join, neighbourhood, plain, split
from node.sandbox.names import ResolveError, resolve


@given(st.one_of(st.ip_addresses(), st.just("ward.lund.example")), st.integers(1, 65_535))
def test_host_and_port_come_back(host: IPv4Address | IPv6Address | str, port: int) -> None:
    address = join(str(host), port)
    assert split(address) == (str(host), port)
    assert is_ipv6(address) == isinstance(host, IPv6Address)


@pytest.mark.parametrize(
    "text",
    ["", "host", ":1", "host:", "host:0", "host:65536", "host:-1", "host:²", "::1:7100", "[::1]", "[::1:7100",
     "[::1]x:7100", "[ward]:7100", "[10.0.0.1]:7100", "[1:2]:7100"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - it is for the caller to say what it is part of
        split(text)


@pytest.mark.parametrize(
    ("endpoint", "bind"),
    [
        ("ward.lund.example:7100", "0.0.0.0:7100"),
        ("192.0.2.7:7100", "0.0.0.0:7100"),
        ("[2001:db8::7]:7100", "[::]:7100"),
        ("localhost:7100", "localhost:7100"),
        ("127.0.0.1:7100", "127.0.0.1:7100"),
        ("127.8.0.1:7100", "127.8.0.1:7100"),
        ("[::1]:7100", "[::1]:7100"),
    ],
)
def test_where_a_node_listens_unless_it_is_told(endpoint: str, bind: str) -> None:
    assert default_bind(endpoint) == bind


def test_an_ipv4_peer_of_an_ipv6_socket_is_named_as_it_is() -> None:
    assert plain("::ffff:192.0.2.7") == "192.0.2.7"
    assert [plain(host) for host in ("192.0.2.7", "2001:db8::7", "fe80::1%eth0")] == [
        "192.0.2.7", "2001:db8::7", "fe80::1%eth0",
    ]  # fmt: skip


def test_one_ipv6_network_is_one_neighbour_however_many_addresses_it_has() -> None:
    assert neighbourhood("2001:db8:0:1::7") == neighbourhood("2001:db8:0:1:ffff::8")
    assert len({neighbourhood(host) for host in ("2001:db8:0:1::7", "2001:db8:0:2::7", "192.0.2.7", "192.0.2.8")}) == 4


def look_up(known: dict[tuple[str, int], str]) -> Any:
    def answer(host: str, port: None, family: int, kind: int) -> list[Any]:
        if (host, family) not in known:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        return [(family, kind, 6, "", (known[host, family], 0))]

    return answer


def test_names_become_numbers_ipv4_first(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        ("both.example", socket.AF_INET): "192.0.2.1",
        ("both.example", socket.AF_INET6): "2001:db8::1",
        ("six.example", socket.AF_INET6): "2001:db8::6",
    }
    monkeypatch.setattr(socket, "getaddrinfo", look_up(known))
    endpoints = {"ada": "both.example:7100", "bo": "six.example:7101", "cy": "none.example:7102"}
    assert resolve(endpoints) == ({"ada": "192.0.2.1:7100", "bo": "[2001:db8::6]:7101"}, ["cy"])
    with pytest.raises(ResolveError, match=r"expected an address for one of cy at none\.example:7102; came none"):
        resolve({"cy": "none.example:7102"})
    assert resolve({}) == ({}, [])


def test_numbers_stay_as_they_are() -> None:
    endpoints = {"ada": "192.0.2.1:7100", "bo": "[2001:db8::6]:7101", "cy": "[::1]:7102"}
    assert resolve(endpoints) == (endpoints, [])
