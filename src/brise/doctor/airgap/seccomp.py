"""Seccomp by ctypes: a filter that stops every system call that could send, and a descriptor that hears of each.

The kernel holds the call until somebody answers at the descriptor (SECCOMP_RET_USER_NOTIF, Linux 5.5): it may go on,
or gets an error. The filter is the calling thread's and is inherited by whatever that starts; nothing takes it off.
io_uring, which would get around it, is refused, and so are calls of other machines' tables (32 bit, x32).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from brise.errors import UnsupportedError


@dataclass(frozen=True)
class CallTable:
    """A processor's numbers of system calls, and what audit calls it."""

    audit: int
    seccomp: int
    calls: Mapping[str, int]


_SAME: Mapping[str, int] = MappingProxyType({"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427})
# Linux's arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h and include/uapi/linux/audit.h.
MACHINES: Mapping[str, CallTable] = MappingProxyType({
    "x86_64": CallTable(0xC000003E, 317, {
        "connect": 42, "sendto": 44, "sendmsg": 46, "sendmmsg": 307, "socket": 41, "setsockopt": 54, **_SAME}),
    "aarch64": CallTable(0xC00000B7, 277, {
        "connect": 203, "sendto": 206, "sendmsg": 211, "sendmmsg": 269, "socket": 198, "setsockopt": 208, **_SAME})})
_X32_BIT = 0x40000000  # in the number of a call of x86's x32 table
_ALWAYS: Sequence[str] = ("connect", "sendto", "sendmsg", "sendmmsg")
# Families that cannot leave the machine, or whose destination the calls above name: AF_UNIX, AF_INET, AF_INET6,
# AF_NETLINK (the kernel), AF_ALG (its ciphers). A socket of any other family, such as AF_PACKET, is reported itself.
QUIET_FAMILIES: Sequence[int] = (1, 2, 10, 16, 38)
SCTP = 132  # names its destination in socket options, too
# Options with which the kernel itself reports a membership to the network: IP_ADD_MEMBERSHIP and its like.
MEMBERSHIPS: Mapping[int, Sequence[int]] = MappingProxyType({0: (35, 39, 42, 46), 41: (20, 42, 46)})

SOCK_PACKET, TYPE_BITS = 10, 0xF  # Linux makes AF_PACKET of AF_INET with this type; above the type are flags

_ALLOW, _NOTIFY, _ERROR = 0x7FFF0000, 0x7FC00000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06  # BPF: ld [k], jeq, jge, and, ret
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # where struct seccomp_data has them
_SET_FILTER, _NEW_LISTENER, _WAIT_KILLABLE = 1, 8, 32
_NO_NEW_PRIVS = 38
_RECEIVE, _ANSWER, _STILL_VALID = 0xC0502100, 0xC0182101, 0x40082102  # SECCOMP_IOCTL_NOTIF_*
_GO_ON = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


class _InstructionStruct(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Data(ctypes.Structure):
    _fields_ = (("nr", ctypes.c_int), ("arch", ctypes.c_uint32), ("instruction_pointer", ctypes.c_uint64),
                ("args", ctypes.c_uint64 * 6))


class _Notification(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint64), ("pid", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("data", _Data))


class _Response(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint64), ("value", ctypes.c_int64), ("error", ctypes.c_int32),
                ("flags", ctypes.c_uint32))


@dataclass(frozen=True)
class HeldCall:
    """A system call that waits for an answer: of which thread, which call, and its six arguments."""

    id: int
    thread: int
    name: str
    arguments: tuple[int, ...]


class FilterError(OSError):
    """The kernel does not take the filter, or another program holds its descriptor already."""


def machine(name: str | None = None) -> CallTable:
    """The machine called `name`, by default this one; UnsupportedError if its numbers are not known."""
    name = name or platform.machine()
    if name not in MACHINES:
        raise UnsupportedError(f"system calls of {name!r} are not known; known are {', '.join(MACHINES)}")
    return MACHINES[name]


def program(of: CallTable) -> list[Instruction]:
    """The filter. Each block begins with the call's number loaded, and goes on to the next one if it is another."""
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH), (_EQUAL, 1, 0, of.audit), (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
        (_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _ERROR | errno.ENOSYS)]
    for name in _SAME:
        code += _on(of.calls[name], [(_RETURN, 0, 0, _ERROR | errno.EPERM)])
    for name in _ALWAYS:
        code += _on(of.calls[name], [(_RETURN, 0, 0, _NOTIFY)])
    quiet = len(QUIET_FAMILIES)
    families = [(_EQUAL, quiet - at, 0, family) for at, family in enumerate(QUIET_FAMILIES)]
    code += _on(of.calls["socket"], [
        _argument(0), *families, (_RETURN, 0, 0, _NOTIFY),
        _argument(2), (_EQUAL, 0, 1, SCTP), (_RETURN, 0, 0, _NOTIFY),
        _argument(1), (_AND, 0, 0, TYPE_BITS), (_EQUAL, 0, 1, SOCK_PACKET), (_RETURN, 0, 0, _NOTIFY),
        (_RETURN, 0, 0, _ALLOW)])
    options: list[Instruction] = []
    for level, names in MEMBERSHIPS.items():
        checks = [(_EQUAL, len(names) - at, 0, name) for at, name in enumerate(names)]
        options += [_argument(1), (_EQUAL, 0, len(names) + 3, level), _argument(2), *checks,
                    (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOTIFY)]
    code += _on(of.calls["setsockopt"], [*options, (_RETURN, 0, 0, _ALLOW)])
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _on(number: int, block: Sequence[Instruction]) -> list[Instruction]:
    """`block`, which returns, for the call with this number; else past it."""
    return [(_EQUAL, 0, len(block), number), *block]


def _argument(index: int) -> Instruction:
    """Loads the lower half of an argument: all arguments that are compared are C ints."""
    return _LOAD, 0, 0, _ARGUMENTS + 8 * index


class Listener:
    """The descriptor at which calls are heard of. Only threads without the filter may wait there."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._names = {number: name for name, number in machine().calls.items()}

    def receive(self) -> HeldCall | None:
        """The next call; None if its thread was killed meanwhile."""
        note = _Notification()
        try:
            fcntl.ioctl(self.descriptor, _RECEIVE, note)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        return HeldCall(note.id, note.pid, self._names.get(note.data.nr, str(note.data.nr)), tuple(note.data.args))

    def is_waiting(self, call: HeldCall) -> bool:
        """Whether the thread still waits, so that what was read of its memory is what the call has."""
        try:
            fcntl.ioctl(self.descriptor, _STILL_VALID, ctypes.c_uint64(call.id))
        except OSError:
            return False
        return True

    def go_on(self, call: HeldCall) -> None:
        """The kernel carries the call out."""
        self._answer(_Response(call.id, 0, 0, _GO_ON))

    def refuse(self, call: HeldCall, error: int) -> None:
        """The call ends with this error, and nothing happens."""
        self._answer(_Response(call.id, 0, -error, 0))

    def pretend(self, call: HeldCall, value: int = 0) -> None:
        """The call returns `value`, and nothing happens."""
        self._answer(_Response(call.id, value, 0, 0))

    def close(self) -> None:
        os.close(self.descriptor)

    def _answer(self, response: _Response) -> None:
        try:
            fcntl.ioctl(self.descriptor, _ANSWER, response)
        except OSError as error:
            if error.errno != errno.ENOENT:  # the thread was killed meanwhile
                raise


def install() -> Listener:
    """Puts the filter on the calling thread, for good. FilterError if the kernel does not take it."""
    here = machine()
    code = program(here)
    array = (_InstructionStruct * len(code))(*(_InstructionStruct(*one) for one in code))
    filter = _FilterProgram(len(code), ctypes.addressof(array))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise FilterError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    # Without WAIT_KILLABLE (Linux 5.19) a signal would end the wait, and the call would be heard of twice.
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        descriptor = libc.syscall(here.seccomp, _SET_FILTER, flags, ctypes.byref(filter))
        if descriptor >= 0:
            os.set_inheritable(descriptor, False)
            return Listener(descriptor)
        if ctypes.get_errno() != errno.EINVAL:
            break
    raise FilterError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
