"""A server under another program's supervision: `brise node` keeps the port while servers come and go behind it.

The supervisor binds the port and hands its socket down, so connections wait in the kernel's queue where no server is
ready, and none is refused. Over a second socket the server says that it is ready, and sees that its supervisor ended.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from dataclasses import dataclass

import uvicorn

from brise.errors import BriseError

READY = b"ready\n"


@dataclass(frozen=True)
class Supervision:
    """The two sockets from the supervisor: the one that listens, and the one between the two programs."""

    listener: socket.socket
    link: socket.socket

    def watch(self) -> None:
        """Ends this process, as SIGTERM does, when the supervisor has ended, whatever the process does then."""
        threading.Thread(target=self._wait_for_end, name="brise-supervision", daemon=True).start()

    def ready(self) -> None:
        """Says that requests are answered from now on; a supervisor that has ended is no error of ours."""
        try:
            self.link.send(READY)
        except OSError:
            return

    def stop_accepting(self, server: uvicorn.Server) -> None:
        """Leaves new connections to another server: idle ones are closed, others end after their answer."""
        for each in server.servers:
            each.close()
        for connection in list(server.server_state.connections):
            connection.shutdown()

    def _wait_for_end(self) -> None:
        try:
            while self.link.recv(64):
                pass
        except OSError:
            pass
        os.kill(os.getpid(), signal.SIGTERM)


def supervised(listen_fd: int, supervisor_fd: int) -> Supervision:
    """The sockets that a supervisor handed down by number; BriseError if they are none."""
    return Supervision(_socket(listen_fd, "--listen-fd"), _socket(supervisor_fd, "--supervisor-fd"))


def _socket(number: int, option: str) -> socket.socket:
    try:
        found = socket.socket(fileno=number)
        found.getsockname()
    except OSError as error:
        raise BriseError(f"{option} is {number}, which is no open socket: {error.strerror}",
                         hint="brise node hands it down; it is no option for a terminal") from None
    found.set_inheritable(False)
    return found
