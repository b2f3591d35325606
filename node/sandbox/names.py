"""Host names of other parties, looked up before the relay is confined: inside there is no UDP, so no DNS."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from keys.errors import WardtreeError


class ResolveError(WardtreeError):
    """A party that must be dialled has a host name without an address."""


def resolve(endpoints: Mapping[str, str], needed: str | None) -> dict[str, str]:
    """The endpoints, ``host:port`` by party, with IPv4 addresses in place of names.

    ZeroMQ is used over IPv4. A name that is not found is left as it is: that party cannot be dialled until this
    node starts anew.

    Raises:
        ResolveError: the party ``needed`` is among them.
    """
    found = {}
    for party, endpoint in endpoints.items():
        host, _, port = endpoint.rpartition(":")
        try:
            ((*_, address), *_) = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
        except OSError as error:
            if party == needed:
                raise ResolveError(
                    f"{party}: expected an address for {endpoint!r}, came none ({error.strerror or error}); "
                    "names are looked up once, when the node starts"
                ) from error
            found[party] = endpoint
        else:
            found[party] = f"{address[0]}:{port}"
    return found
