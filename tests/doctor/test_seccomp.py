"""The filter and the addresses, without a kernel: what is stopped, on both machines, and what an address means."""

from __future__ import annotations

import socket
import struct

import pytest

from brise.doctor.airgap import destinations, seccomp
from brise.errors import UnsupportedError


def outcome(of: seccomp.CallTable, call: str | int, *arguments: int, audit: int | None = None) -> str:
    """What the kernel would do, by BPF's rules."""
    number = call if isinstance(call, int) else of.calls[call]
    data = struct.pack("<iIQ6Q", number, audit or of.audit, 0, *arguments, *(0,) * (6 - len(arguments)))
    code, at, value = seccomp.program(of), 0, 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        match operation:
            case 0x20:
                value = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                value &= k
            case 0x15:
                at += if_true if value == k else if_false
            case 0x35:
                at += if_true if value >= k else if_false
            case _:
                return {0x7FFF0000: "allow", 0x7FC00000: "notify"}.get(k, f"error {k & 0xFFFF}")


@pytest.mark.parametrize("machine", list(seccomp.MACHINES))
def test_what_could_send_is_heard_of(machine: str) -> None:
    of = seccomp.machine(machine)
    for call in ("connect", "sendto", "sendmsg", "sendmmsg"):
        assert outcome(of, call, 3, 0) == "notify"
    for family in (17, 31, 40, 44, 200):
        assert outcome(of, "socket", family, 1, 0) == "notify"
    assert outcome(of, "socket", 2, 5, 132) == outcome(of, "socket", 2, 10 | 0x80000, 0) == "notify"
    for level, option in ((0, 35), (0, 39), (0, 42), (0, 46), (41, 20), (41, 42), (41, 46)):
        assert outcome(of, "setsockopt", 3, level, option) == "notify"


@pytest.mark.parametrize("machine", list(seccomp.MACHINES))
def test_what_cannot_send_is_not_held_up(machine: str) -> None:
    of = seccomp.machine(machine)
    for family in (1, 2, 10, 16, 38):
        assert outcome(of, "socket", family, 1 | 0x80800, 6) == "allow"
    for level, option in ((1, 35), (0, 34), (6, 1), (41, 21), (0, 20)):
        assert outcome(of, "setsockopt", 3, level, option) == "allow"
    assert outcome(of, 0x1FF) == "allow" and outcome(of, 63) == "allow"


@pytest.mark.parametrize("machine", list(seccomp.MACHINES))
def test_ways_around_it_are_closed(machine: str) -> None:
    of = seccomp.machine(machine)
    assert {outcome(of, call) for call in ("io_uring_setup", "io_uring_enter", "io_uring_register")} == {"error 1"}
    assert outcome(of, 0x40000000 | of.calls["connect"]) == "error 38"  # x32
    assert outcome(of, 102, audit=0x40000003) == "error 38"  # socketcall of i386


def test_a_machine_of_other_numbers_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'riscv64' are not known; known are x86_64, aarch64"):
        seccomp.machine("riscv64")


def v4(address: str, port: int, family: int = socket.AF_INET) -> bytes:
    return struct.pack("<H", family) + struct.pack(">H", port) + socket.inet_aton(address) + bytes(8)


def v6(address: str, port: int) -> bytes:
    head = struct.pack("<H", socket.AF_INET6) + struct.pack(">HI", port, 0)
    return head + socket.inet_pton(socket.AF_INET6, address) + bytes(4)


@pytest.mark.parametrize("raw", [
    v4("127.0.0.1", 80), v4("127.8.9.10", 80), v4("0.0.0.0", 80), v6("::1", 80), v6("::", 80),
    v6("::ffff:127.0.0.1", 80), struct.pack("<H", 1) + b"/run/postgresql/.s.PGSQL.5432\0",
    struct.pack("<H", 1) + b"\0abstract", struct.pack("<HHII", 16, 0, 0, 0)])
def test_what_stays_on_this_machine(raw: bytes) -> None:
    assert destinations.read(raw, connects=True).is_local


@pytest.mark.parametrize(("raw", "text", "note"), [
    (v4("192.0.2.1", 443), "192.0.2.1:443", ""), (v4("10.0.0.1", 53), "10.0.0.1:53", "DNS"),
    (v4("127.0.0.53", 53), "127.0.0.53:53", "DNS"), (v6("::1", 53), "[::1]:53", "DNS"),
    (v4("239.255.255.250", 1900), "239.255.255.250:1900", "multicast"),
    (v6("ff02::fb", 5353), "[ff02::fb]:5353", "mDNS, multicast"),
    (v4("255.255.255.255", 9), "255.255.255.255:9", "broadcast"),
    (v6("::ffff:192.0.2.1", 80), "192.0.2.1:80", ""), (v6("fe80::1", 80), "[fe80::1]:80", ""),
    (struct.pack("<H", 1) + b"/run/systemd/resolve/io.systemd.Resolve\0",
     "unix:/run/systemd/resolve/io.systemd.Resolve", "a name look-up through a daemon"),
    (struct.pack("<HHII", 40, 0, 80, 2), "AF_VSOCK", "")])
def test_what_leaves_it(raw: bytes, text: str, note: str) -> None:
    found = destinations.read(raw, connects=True)
    assert (found.text, found.note, found.is_local) == (text, note, False)


def test_an_unspecified_family_ends_a_connection_but_sends_to_an_address() -> None:
    raw = v4("192.0.2.1", 9, socket.AF_UNSPEC)
    assert destinations.read(raw, connects=True).is_local
    assert not destinations.read(raw, connects=False).is_local


@pytest.mark.parametrize(("packet", "name"), [
    (bytes.fromhex("abcd01000001000000000000") + b"\x07planted\x07example\0\0\x01\0\x01", "planted.example"),
    (bytes.fromhex("abcd01000001000000000000") + b"\x07plan", None), (b"\x16\x03\x01", None), (b"", None),
    (bytes.fromhex("abcd81800001000000000000") + b"\x01a\0", None)])
def test_the_name_in_a_query(packet: bytes, name: str | None) -> None:
    assert destinations.dns_name(packet) == name
