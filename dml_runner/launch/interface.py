"""Network interfaces of this host, told without a tool: which there are, and which one leads to another host."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from pathlib import Path

SIOCGIFADDR = 0x8915
"""Linux: an interface's IPv4 address (netdevice(7))."""


def names() -> list[str]:
    """The interfaces of this host."""
    return [name for _, name in socket.if_nameindex()]


def leading_to(address: str) -> str | None:
    """The interface by which this host sends to ``address``; None: that cannot be told, or there is no way. Nothing is sent."""
    with suppress(OSError):
        for family, kind, protocol, _, target in socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return _having(str(probe.getsockname()[0]))
    return None


def _having(address: str) -> str | None:
    """The interface that has an address of this host."""
    own = ipaddress.ip_address(address.partition("%")[0])
    if own.is_loopback:
        return "lo"
    return _with_version_4(str(own)) if own.version == 4 else _with_version_6(own.packed.hex())


def _with_version_4(address: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for name in names():
            with suppress(OSError):  # it has none
                found = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


def _with_version_6(digits: str) -> str | None:
    """By proc(5), net/if_inet6: the address in hexadecimal first, the name last."""
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            if line.split()[0] == digits:
                return line.split()[-1]
    return None
