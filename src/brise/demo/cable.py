"""A cable between a device and its hub: a relay of TCP on loopback that can be cut and mended."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

_CHUNK = 1 << 16


class Cable:
    """Passes connections to its own port on to `port` of this machine. While it is cut, those that are open break, and
    new ones are closed at once."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, name="brise-cable", daemon=True).start()

    @property
    def port(self) -> int:
        """Where the device connects."""
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """Nothing passes from now on."""
        with self._lock:
            self._is_cut = True
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """New connections pass again."""
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        """Takes it away."""
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as far:
            with self._lock:
                if self._is_cut:
                    return
                self._open |= {near, far}
            try:
                back = threading.Thread(target=_pass, args=(far, near), daemon=True)
                back.start()
                _pass(near, far)
                back.join()
            finally:
                with self._lock:
                    self._open -= {near, far}


def _pass(source: socket.socket, target: socket.socket) -> None:
    """Until the source ends, or either breaks."""
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
