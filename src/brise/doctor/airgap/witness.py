"""Hears of every call that could send, lets pass what stays on this machine, refuses and counts the rest."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brise.doctor.airgap import destinations
from brise.doctor.airgap.destinations import MAX_ADDRESS_BYTES, SocketAddress
from brise.doctor.airgap.seccomp import SCTP, SOCK_PACKET, TYPE_BITS, HeldCall, Listener

MAX_MESSAGES = 1024  # UIO_MAXIOV: what sendmmsg takes at once
_MAX_PACKET = 512  # of a DNS query
_HEADER, _MESSAGE_BYTES = struct.Struct("<QIxxxxQQ"), 64  # of struct msghdr; a struct mmsghdr with its padding
_VECTOR = struct.Struct("<QQ")  # struct iovec
_POLL_MS = 200
_PIDFD_GETFD = 438  # on every machine


@dataclass(frozen=True)
class Attempt:
    """Something that was to leave this machine: which command tried, by which process and call, and where to."""

    command: str
    process: str
    call: str
    address: str
    note: str = ""


class UnreadableError(Exception):
    """The memory of a process cannot be read."""


class Witness:
    """Counts attempts. `command` says which command runs at the moment."""

    def __init__(self, listener: Listener, command: Callable[[], str]) -> None:
        self._listener, self._command = listener, command
        self.attempts: Counter[Attempt] = Counter()
        self._resolving: dict[str, Attempt] = {}  # sockets that believe to be connected to a DNS server

    def watch(self, is_over: Callable[[], bool]) -> None:
        """Answers calls until `is_over`, or nobody has the filter any more."""
        poll = select.poll()
        poll.register(self._listener.descriptor, select.POLLIN)
        while not is_over():
            for _, events in poll.poll(_POLL_MS):
                if events & select.POLLIN:
                    call = self._listener.receive()
                    if call is not None:
                        self._answer(call)
                elif events & select.POLLHUP:
                    return

    def _answer(self, call: HeldCall) -> None:
        try:
            self._judge(call)
        except UnreadableError:
            if self._listener.is_waiting(call):
                self._count(call, "unreadable: the process does not let its memory be read")
                self._listener.refuse(call, errno.EPERM)

    def _judge(self, call: HeldCall) -> None:
        match call.name:
            case "socket":
                family, kind, protocol = map(_int, call.arguments[:3])
                is_packet = kind & TYPE_BITS == SOCK_PACKET
                self._count(call, "SCTP" if protocol == SCTP else "SOCK_PACKET" if is_packet else
                            destinations.family_name(family))
                self._listener.refuse(call, errno.EPERM)
            case "setsockopt":
                raw = self._read(call, call.arguments[3], min(_int(call.arguments[4]), 2 * MAX_ADDRESS_BYTES + 8))
                self._count(call, destinations.group(raw, _int(call.arguments[1]), _int(call.arguments[2])),
                            "joins a multicast group")
                self._listener.refuse(call, errno.ENODEV)
            case "connect":
                self._connect(call, call.arguments[1], call.arguments[2])
            case "sendto":
                self._send(call, [(call.arguments[4], call.arguments[5], call.arguments[1], call.arguments[2])])
            case "sendmsg":
                self._send(call, [self._message(call, call.arguments[1])])
            case _:  # sendmmsg
                count = min(_int(call.arguments[2]), MAX_MESSAGES)
                self._send(call, [self._message(call, call.arguments[1] + _MESSAGE_BYTES * at) for at in range(count)])

    def _connect(self, call: HeldCall, address: int, length: int) -> None:
        to = self._destination(call, address, length, connects=True)
        if destinations.NAME_CACHE in to.text:
            self._listener.refuse(call, errno.ECONNREFUSED)
        elif to.is_local:
            self._listener.go_on(call)
        elif to.is_dns and _is_datagram(call):
            # It believes to be connected, so that it says which name it looks for: the next call is refused.
            self._resolving[_socket_of(call)] = self._count(call, to.text, to.note)
            self._listener.pretend(call)
        else:
            self._count(call, to.text, to.note)
            self._listener.refuse(call, errno.ENETUNREACH)

    def _send(self, call: HeldCall, messages: list[tuple[int, int, int, int]]) -> None:
        """Messages with an address and its length, or 0; and where their bytes are, and how many."""
        resolving = self._resolving.get(_socket_of(call)) if self._resolving else None
        refused = False
        for address, length, data, size in messages:
            if address:
                to = self._destination(call, address, length, connects=False)
                if not to.is_local:
                    self._count(call, to.text, self._note(call, to, data, size))
                    refused = True
            elif resolving is not None:
                self._name(resolving, self._query(call, data, size))
                refused = True
        if refused:
            self._listener.refuse(call, errno.ENETUNREACH)
        else:
            self._listener.go_on(call)

    def _note(self, call: HeldCall, to: SocketAddress, data: int, size: int) -> str:
        """Of a packet to a DNS server, the name that it asks for."""
        name = self._query(call, data, size) if to.is_dns or "DNS" in to.note else None
        return f"{to.note} of {name}" if name else to.note

    def _name(self, attempt: Attempt, name: str | None) -> None:
        """Moves one count of a look-up to the row with the name."""
        named = Attempt(attempt.command, attempt.process, attempt.call, attempt.address, f"{attempt.note} of {name}")
        if name is None or not self.attempts[attempt]:
            if name is not None and not self.attempts[named]:
                self.attempts[named] += 1  # one connection, several names
            return
        self.attempts[attempt] -= 1
        self.attempts[named] += 1

    def _query(self, call: HeldCall, data: int, size: int) -> str | None:
        return destinations.dns_name(self._read(call, data, min(size, _MAX_PACKET)))

    def _destination(self, call: HeldCall, address: int, length: int, *, connects: bool) -> SocketAddress:
        raw = self._read(call, address, min(_int(length), MAX_ADDRESS_BYTES))
        return destinations.read(raw, connects=connects)

    def _message(self, call: HeldCall, place: int) -> tuple[int, int, int, int]:
        head = self._read(call, place, _HEADER.size)
        if len(head) < _HEADER.size:
            return 0, 0, 0, 0  # a wild pointer: the kernel will answer EFAULT
        address, length, vectors, num_vectors = _HEADER.unpack(head)
        vector = self._read(call, vectors, _VECTOR.size) if num_vectors else b""
        if len(vector) < _VECTOR.size:
            return address, length, 0, 0
        data, size = _VECTOR.unpack(vector)
        return address, length, data, size

    def _read(self, call: HeldCall, place: int, length: int) -> bytes:
        if not length:
            return b""
        try:
            memory = os.open(f"/proc/{call.thread}/mem", os.O_RDONLY)
            try:
                raw = os.pread(memory, length, place)
            finally:
                os.close(memory)
        except OSError as error:
            if error.errno == errno.EIO and self._listener.is_waiting(call):
                return b""  # the process gave a wild address: the kernel will answer EFAULT
            raise UnreadableError from error
        if not self._listener.is_waiting(call):
            raise UnreadableError
        return raw

    def _count(self, call: HeldCall, address: str, note: str = "") -> Attempt:
        attempt = Attempt(self._command(), _words_of(call.thread), call.name, address, note)
        self.attempts[attempt] += 1
        return attempt


def _int(argument: int) -> int:
    """An argument that is a C int: the kernel does not look at its upper half."""
    return argument & 0xFFFFFFFF


def _socket_of(call: HeldCall) -> str:
    """The name of the socket that a call is for: socket:[INODE]; no two have one at the same time."""
    try:
        return os.readlink(f"/proc/{call.thread}/fd/{_int(call.arguments[0])}")
    except OSError:
        return ""


def _is_datagram(call: HeldCall) -> bool:
    """Whether a call is for a socket whose connect sends nothing, as far as we are allowed to look."""
    try:
        process = os.pidfd_open(_process_of(call.thread))
        try:
            number = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, _int(call.arguments[0]), 0)
        finally:
            os.close(process)
        if number < 0:
            return False
        with socket.socket(fileno=number) as copy:
            return copy.type == socket.SOCK_DGRAM
    except OSError:
        return False


def _process_of(thread: int) -> int:
    """The process of a thread: what shares its descriptors."""
    try:
        for line in Path(f"/proc/{thread}/status").read_text().splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except OSError:
        pass
    return thread


def _words_of(thread: int) -> str:
    """The command line of a process, and its number."""
    try:
        words = Path(f"/proc/{thread}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    text = " ".join(os.fsdecode(word) for word in words) or "a process that is gone"
    return f"{text} ({_process_of(thread)})"
