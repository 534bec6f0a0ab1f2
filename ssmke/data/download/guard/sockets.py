"""Sockets that hold to a deadline and to a number of bytes, and only lead to public addresses.

The deadline is enforced at every single receive, so that a byte a second does not escape it. The address that is
connected to is the one that was looked at, so a second look-up cannot swap it; behind a proxy, which looks names
up itself, addresses in any spelling are still judged. Looking up a name is the one wait that cannot be bounded
here; `RES_OPTIONS` bounds it in the C library.

Standard library only, and no other file of ssmke: the python of another environment runs it.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
import urllib.parse
from typing import Any

_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
"""Whoever runs such a network maps what they like into it; older versions of Python take it for public."""
_IPV4_INSIDE = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
"""NAT64, and the old "IPv4-compatible" addresses (``::127.0.0.1``): the last 32 bits are an IPv4 address."""


class Refused(Exception):
    """A URL that is not fetched, or no further; no OSError, so that nothing wraps it."""


class Bounded:
    """A socket whose every receive ends at ``deadline``, and that gives ``budget`` bytes at most.

    That holds for whatever is received, headers and TLS included.
    """

    deadline = float("inf")
    patience = 10.0
    budget = float("inf")

    def bound(self, deadline: float, patience: float, budget: int) -> None:
        self.deadline, self.patience, self.budget = deadline, patience, budget

    def recv_into(self, *arguments: Any) -> int:
        self.settimeout(_left(self.deadline, self.patience))  # type: ignore[attr-defined]
        count: int = super().recv_into(*arguments)  # type: ignore[misc]
        self.budget -= count
        if self.budget < 0:
            raise Refused("too many bytes")
        return count


class Socket(Bounded, socket.socket):
    pass


class TlsSocket(Bounded, ssl.SSLSocket):
    pass


def _left(deadline: float, patience: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Refused("timed out: not whole at its deadline")
    return min(left, patience)


def connect(host: str, port: int, deadline: float, patience: float, private: bool) -> Socket:
    """Connect to an address that was itself looked at, so that a second look-up cannot give another one."""
    try:
        found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    except UnicodeError:
        raise Refused(f"name not resolved: {host[:80]!r} is no host name") from None
    if not private:
        for *_, address in found:
            if is_private(str(address[0])):
                raise Refused(f"private address: {host} is {address[0]}")
    error: OSError = OSError("no address")
    for family, kind, protocol, _, address in found:
        connected = Socket(family, kind, protocol)
        try:
            connected.settimeout(_left(deadline, patience))
            connected.connect(address)
            return connected
        except OSError as failure:
            connected.close()
            error = failure
        except BaseException:
            connected.close()
            raise
    raise error


def is_private(address: str) -> bool:
    """Whether an IP address is anything but a public one: private, loopback, link-local, multicast, ..."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        # IPv4 in IPv6's clothes is judged as what it is: mapped, 6to4, NAT64, compatible.
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and any(ip in network for network in _IPV4_INSIDE):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_private(str(inner))
        if ip.is_site_local or ip in _LOCAL_NAT64:
            return True
    return not ip.is_global or ip.is_multicast


def refuse_private_literal(url: str) -> None:
    """Refuse a URL whose host is itself a private address, however it is spelled, or this machine's name."""
    host = urllib.parse.unquote(urllib.parse.urlsplit(url).hostname or "").lower().rstrip(".")
    try:
        private = is_private(host)
    except ValueError:
        try:
            # As C libraries read it: 127.1, 2130706433, 0x7f000001, 0177.0.0.1.
            private = is_private(socket.inet_ntoa(socket.inet_aton(host)))
        except (OSError, ValueError):
            private = host == "localhost" or host.endswith(".localhost")
    if private:
        raise Refused(f"private address: {host}")
