"""The servers of the matrix: a local model, a gateway in front of it, and a relay that writes requests down."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

KEY = "test-key"
CONTEXT = 8192


@dataclass(frozen=True)
class Servers:
    """Addresses; `local` and `gateway` are relays of requests, `metrics` is the server that computes."""

    local: str
    gateway: str
    metrics: str


@contextmanager
def running(model: str, folder: Path) -> Iterator[Servers]:
    """Starts `brise serve MODEL`, `brise serve --upstream` in front of it, and a relay in front of each."""
    keys = folder / "keys.txt"
    keys.touch(mode=0o600)
    keys.write_text(f"{KEY}\n")
    local, gateway = free_port(), free_port()
    with (_serve([f"local={model}", "--port", str(local), "--api-keys", str(keys), "--context", str(CONTEXT),
                  "--parallel", "16", "--queue", "64"], local, folder / "local.log"),
          _serve(["--upstream", f"http://127.0.0.1:{local}/v1", "--upstream-path", "/api/*",
                  "--port", str(gateway)], gateway,
                 folder / "gateway.log")):
        relays = [Relay(port, folder / f"{name}.requests")
                  for name, port in (("local", local), ("gateway", gateway))]
        yield Servers(relays[0].url, relays[1].url, f"http://127.0.0.1:{local}")


@contextmanager
def _serve(arguments: list[str], port: int, log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "brise", "serve", *arguments]
    with log.open("w") as out, subprocess.Popen(command, stderr=out) as run:
        try:
            for _ in range(1200):
                assert run.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield
        finally:
            run.terminate()


class Relay:
    """Copies bytes both ways, and appends what clients send to a file; a client that leaves ends both sides."""

    def __init__(self, target: int, record: Path) -> None:
        self._target, self._record = target, record
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            sent = bytearray()
            threading.Thread(target=self._copy, args=(client, server, sent), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, None), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket, sent: bytearray | None) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
                if sent is not None:
                    sent += data
        except OSError:
            pass
        for side in (source, target):
            try:
                side.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if sent:
            with self._record.open("ab") as file:  # whole connections, so that requests do not mix
                file.write(len(sent).to_bytes(8) + sent)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
