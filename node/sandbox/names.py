"""Host names of other parties, looked up before the relay is confined: inside there is no UDP, so no DNS."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from keys.errors import WardtreeError
from node.address import join, split


class ResolveError(WardtreeError):
    """None of the parties that this node may dial has a host name with an address."""


def resolve(endpoints: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Look up where others listen: over IPv6 only where there is no IPv4 address, because a node whose endpoint is a
    name listens over IPv4 unless its ``node.toml`` says otherwise.

    Args:
        endpoints: ``host:port`` by party.

    Returns:
        The same with addresses in place of names, without those that have none; and who these are. They cannot
        be dialled until this node starts anew.

    Raises:
        ResolveError: nobody is left.
    """
    found, unknown = {}, []
    for party, endpoint in endpoints.items():
        host, port = split(endpoint)
        address = _look_up(host, socket.AF_INET) or _look_up(host, socket.AF_INET6)
        if address is None:
            unknown.append(party)
        else:
            found[party] = join(address, port)
    if not found and endpoints:
        names = ", ".join(f"{party} at {endpoint}" for party, endpoint in endpoints.items())
        raise ResolveError(f"expected an address for one of {names}; came none: is there a network, a DNS?")
    return found, unknown


def _look_up(host: str, family: int) -> str | None:
    try:
        ((*_, address), *_) = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    except OSError:
        return None
    return str(address[0])
