"""Runs `brise chat` and `brise serve` on a model where there is no network at all: a new, empty namespace.

Called by test_offline.py as a process of its own, since a process cannot leave the namespace again.
usage: python no_network.py MODEL.gguf
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys

import httpx

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
NO_PRIVILEGE = 77  # the exit status by which automake's tests say "skipped"


def main(model: str) -> int:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        print(os.strerror(ctypes.get_errno()))
        return NO_PRIVILEGE
    bring_up_loopback()
    chat(model)
    serve(model)
    return 0


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def chat(model: str) -> None:
    done = subprocess.run([sys.executable, "-m", "brise", "chat", model, "hello", "--max-tokens", "4"],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def serve(model: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "brise", "serve", f"m={model}", "--port", str(port)],
                              stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    for line in server.stderr:
        if str(port) in line:
            break
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", timeout=120, json={
        "model": "m", "max_tokens": 4, "messages": [{"role": "user", "content": "hello"}]})
    assert answer.status_code == 200, answer.text
    server.send_signal(signal.SIGTERM)
    server.stderr.read()
    assert server.wait(60) == 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
