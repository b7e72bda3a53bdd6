"""A network namespace of one's own, by ctypes: nothing in it but its own loopback, so that nothing can leave."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

_NEW_USER, _NEW_NET = 0x10000000, 0x40000000  # CLONE_*
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_REQUEST = struct.Struct("16sh14x")  # struct ifreq


def enter() -> None:
    """Moves this process, which must have one thread, into a namespace; OSError if the system does not allow it.

    Users may do that in a user namespace (`unshare --user --net`), in which they keep their own number.
    """
    user, group = os.geteuid(), os.getegid()
    try:
        _unshare(_NEW_USER | _NEW_NET)
    except OSError:
        if user != 0:
            raise
        _unshare(_NEW_NET)  # root in a container that has no user namespaces
    else:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _raise_loopback()


def _unshare(flags: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        flags = _REQUEST.unpack(fcntl.ioctl(any_socket, _GET_FLAGS, _REQUEST.pack(b"lo", 0)))[1]
        fcntl.ioctl(any_socket, _SET_FLAGS, _REQUEST.pack(b"lo", flags | _UP))
