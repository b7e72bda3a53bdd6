"""Tries to leave the machine in every way that the witness has to see, and does what it has to leave alone.

usage: python planted.py FILE: the number of a process that it leaves behind goes there
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

GRANDCHILD = "import socket; socket.socket(socket.AF_INET6).connect(('2001:db8::7', 443))"


def refused(attempt: Callable[[], object]) -> None:
    """Makes an attempt, which must fail."""
    try:
        attempt()
    except OSError:
        return
    raise AssertionError("an attempt went through")


def leave() -> None:
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    refused(lambda: socket.create_connection(("192.0.2.7", 443), timeout=5))
    refused(lambda: socket.getaddrinfo("planted.example", 443))
    refused(lambda: datagrams.sendto(b"hello", ("224.0.0.251", 5353)))
    refused(lambda: datagrams.sendmsg([b"hello"], [], 0, ("198.51.100.9", 9)))
    refused(lambda: datagrams.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                                         socket.inet_aton("239.1.2.3") + socket.inet_aton("0.0.0.0")))
    refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    refused(lambda: socket.socket(socket.AF_INET, 10))  # SOCK_PACKET
    refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 5355)))  # a resolver's
    subprocess.run([sys.executable, "-c", GRANDCHILD], start_new_session=True, stderr=subprocess.DEVNULL, check=False)


def stay() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendmsg([b"hello"])
        assert server.accept()[0].recv(5) == b"hello"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket(socket.AF_INET6) as six:
        one.sendto(b"", ("127.0.0.1", 9))
        one.connect(("0.0.0.0", 9))  # Linux takes it for loopback
        with suppress(ConnectionRefusedError):
            six.connect(("::1", 9))
    one, other = socket.socketpair()
    one.sendmsg([b"a"])
    assert other.recv(1) == b"a"
    with socket.socket(socket.AF_UNIX) as unix, suppress(FileNotFoundError):
        unix.connect("/nowhere/at/all")
    ring = ctypes.CDLL(None, use_errno=True).syscall(425, 8, ctypes.create_string_buffer(120))
    assert ring == -1 and ctypes.get_errno() == errno.EPERM, "io_uring would get around the filter"


if __name__ == "__main__":
    assert platform.system() == "Linux"
    stay()
    leave()
    left = subprocess.Popen(["sleep", "60"], start_new_session=True)
    Path(sys.argv[1]).write_text(str(left.pid))
    os._exit(0)  # without waiting for it
