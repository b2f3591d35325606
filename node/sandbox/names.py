"""Host names of other parties, looked up before the relay is confined: inside there is no UDP, so no DNS."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from keys.errors import WardtreeError


class ResolveError(WardtreeError):
    """None of the parties that this node may dial has a host name with an address."""


def resolve(endpoints: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Look up where others listen. ZeroMQ is used over IPv4.

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
        host, _, port = endpoint.rpartition(":")
        try:
            ((*_, address), *_) = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
        except OSError:
            unknown.append(party)
        else:
            found[party] = f"{address[0]}:{port}"
    if not found and endpoints:
        names = ", ".join(f"{party} at {endpoint}" for party, endpoint in endpoints.items())
        raise ResolveError(f"expected an IPv4 address for one of {names}; came none: is there a network, a DNS?")
    return found, unknown
