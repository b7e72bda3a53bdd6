"""Where a system call sends to: socket addresses as the kernel reads them, what is local, names in DNS look-ups."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

MAX_ADDRESS_BYTES = 128  # sizeof(struct sockaddr_storage)
DNS_PORT = 53
# On loopback, too, somebody asks the network on behalf of who sends to these: DNS, DNS over TLS, mDNS, LLMNR.
RESOLVER_PORTS: Mapping[int, str] = MappingProxyType({
    DNS_PORT: "DNS", 853: "DNS over TLS", 5353: "mDNS", 5355: "LLMNR"})
# Unix sockets of daemons that look names up for others.
RESOLVER_SOCKETS: Sequence[str] = ("/systemd/resolve/", "/avahi-daemon/socket")
NAME_CACHE = "/nscd/socket"  # glibc asks it for users, too, so asking is no attempt; refused, glibc asks by itself
_FAMILIES: Mapping[int, str] = MappingProxyType({
    family.value: family.name for family in socket.AddressFamily} | {44: "AF_XDP", 30: "AF_TIPC"})


@dataclass(frozen=True)
class SocketAddress:
    """An address as it is shown, why it counts or does not, and whether it stays on this machine."""

    text: str
    is_local: bool
    note: str = ""
    is_dns: bool = False


def read(raw: bytes, *, connects: bool) -> SocketAddress:
    """The destination in a struct sockaddr. AF_UNSPEC ends a connection, but for sendto it is an IPv4 address."""
    if len(raw) < 2:
        return SocketAddress("no address", True)
    family = int.from_bytes(raw[:2], "little")  # both machines that are known are little-endian
    if family == socket.AF_UNIX:
        return _unix(raw[2:])
    if family == socket.AF_UNSPEC and connects:
        return SocketAddress("disconnect", True)
    if family in (socket.AF_INET, socket.AF_UNSPEC) and len(raw) >= 8:
        return _internet(ipaddress.IPv4Address(raw[4:8]), int.from_bytes(raw[2:4], "big"))
    if family == socket.AF_INET6 and len(raw) >= 24:
        return _internet(ipaddress.IPv6Address(raw[8:24]), int.from_bytes(raw[2:4], "big"))
    if family in (socket.AF_NETLINK, socket.AF_ALG):
        return SocketAddress(family_name(family), True)
    return SocketAddress(family_name(family), family in (socket.AF_INET, socket.AF_INET6), "")  # too short: EINVAL


def family_name(family: int) -> str:
    """AF_PACKET for 17."""
    return _FAMILIES.get(family, f"address family {family}")


def group(raw: bytes, level: int, option: int) -> str:
    """The multicast group of an option that joins one."""
    if option in (42, 46):  # MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP: the interface, then a sockaddr
        return read(raw[8:], connects=False).text.rpartition(":")[0] or "a group"
    if level == 0 and len(raw) >= 4:
        return str(ipaddress.IPv4Address(raw[:4]))
    return str(ipaddress.IPv6Address(raw[:16])) if len(raw) >= 16 else "a group"


def dns_name(packet: bytes) -> str | None:
    """The name that a DNS query asks for (RFC 1035, 4.1): a header of 12 bytes, then labels with their lengths."""
    if len(packet) < 13 or packet[2] & 0x80 or struct.unpack(">H", packet[4:6])[0] < 1:
        return None
    labels, at = [], 12
    while at < len(packet) and (length := packet[at]):
        if length > 63 or at + 1 + length > len(packet):
            return None
        labels.append(packet[at + 1:at + 1 + length].decode("ascii", "replace"))
        at += 1 + length
    return ".".join(labels) or None


def _unix(path: bytes) -> SocketAddress:
    text = "@" + os.fsdecode(path[1:].rstrip(b"\0")) if path[:1] == b"\0" else os.fsdecode(path.partition(b"\0")[0])
    is_resolver = any(part in text for part in RESOLVER_SOCKETS)
    return SocketAddress(f"unix:{text}", not is_resolver, "a name look-up through a daemon" if is_resolver else "")


def _internet(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> SocketAddress:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    real = mapped or address
    # Linux takes the unspecified address as a destination for loopback.
    is_local = real.is_loopback or real.is_unspecified
    resolver = RESOLVER_PORTS.get(port, "")
    text = f"[{real}]:{port}" if isinstance(real, ipaddress.IPv6Address) else f"{real}:{port}"
    if resolver and real.is_multicast:
        resolver = f"{resolver}, multicast"
    note = resolver or ("multicast" if real.is_multicast else "broadcast" if str(real) == "255.255.255.255" else "")
    return SocketAddress(text, is_local and not resolver, note, port == DNS_PORT)
