"""Addresses as ``host:port``, as cards, settings and sockets have them. An IPv6 address stands in brackets."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import ExitStack

MOST_PORT = 65_535


def split(address: str) -> tuple[str, int]:
    """Host, without brackets, and port.

    Raises:
        ValueError: it is none.
    """
    host, _, port = address.rpartition(":")
    if is_ipv6(address):
        if not host.endswith("]"):
            raise ValueError(address)
        host = host[1:-1]
        ipaddress.IPv6Address(host)
    elif not host or ":" in host:
        raise ValueError(address)
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= MOST_PORT):
        raise ValueError(address)
    return host, int(port)


def join(host: str, port: int) -> str:
    """The inverse of :func:`split`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ipv6(address: str) -> bool:
    """Whether it is a literal IPv6 address, with its port."""
    return address.startswith("[")


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Different ports that nobody has now at one of this machine's addresses.

    Raises:
        OSError: the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(family)) for _ in range(count)]
        for one in sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in sockets]


def default_bind(endpoint: str) -> str:
    """Where a node listens whom others reach at ``endpoint``: loopback stays loopback; else all addresses of its
    machine, only the IPv4 ones unless the endpoint is an IPv6 address."""
    host, port = split(endpoint)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return endpoint if host == "localhost" else join("0.0.0.0", port)
    if address.is_loopback:
        return endpoint
    return join("::" if address.version == 6 else "0.0.0.0", port)


def plain(host: str) -> str:
    """A peer's address as people write it: IPv4 that came to an IPv6 socket is IPv4."""
    try:
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
    except ValueError:
        return host
    return str(mapped) if mapped else host


def neighbourhood(host: str) -> str:
    """What one customer of a network has: an IPv4 address, or the 2**64 of an IPv6 network."""
    try:
        return str(ipaddress.IPv6Network((host, 64), strict=False))
    except ValueError:
        return host
