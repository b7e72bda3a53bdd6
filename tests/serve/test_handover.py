"""Servers under supervision: one socket that listens, and servers that come and go behind it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from brise.errors import BriseError
from brise.serve.handover import READY, supervised
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from brise.engine.engine_thread import EngineThread
from brise.serve.app import run_server
from brise.serve.handover import supervised
from brise.serve.serving import ServeSettings
from tests.engine.stub import stub_engine

supervision = supervised(int(sys.argv[2]), int(sys.argv[3]))
supervision.watch()
worker = EngineThread(stub_engine(on_step=lambda batch: time.sleep(0.01), num_pages=2000))
worker.start()
sys.exit(run_server({sys.argv[1]: worker}, ServeSettings(access_log=False, supervision=supervision),
                    bound=supervision.listener))
"""


@dataclass(frozen=True)
class Child:
    """A server that the test supervises."""

    process: subprocess.Popen[bytes]
    link: socket.socket

    def wait_ready(self) -> None:
        self.link.settimeout(LIMIT_S)
        assert self.link.recv(64) == READY


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(16)
        yield bound


@contextmanager
def started(name: str, listener: socket.socket) -> Iterator[Child]:
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name, str(listener.fileno()), str(theirs.fileno())], cwd=ROOT,
            pass_fds=(listener.fileno(), theirs.fileno()), stderr=subprocess.DEVNULL) as process:
        theirs.close()
        try:
            yield Child(process, ours)
        finally:
            process.kill()


def url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def models(listener: socket.socket) -> list[str]:
    with httpx.Client(timeout=LIMIT_S) as client:
        return [card["id"] for card in client.get(f"{url(listener)}/v1/models").json()["data"]]


def test_the_new_server_takes_over_while_the_old_one_finishes(listener: socket.socket) -> None:
    with ExitStack() as stack:
        old = stack.enter_context(started("old", listener))
        old.wait_ready()
        assert models(listener) == ["old"]
        client = stack.enter_context(httpx.Client(timeout=LIMIT_S))
        body = {"model": "old", "prompt": "a", "stream": True, "ignore_eos": True, "max_tokens": 60}
        answer = stack.enter_context(client.stream("POST", f"{url(listener)}/v1/completions", json=body))
        lines = answer.iter_lines()
        next(lines)
        new = stack.enter_context(started("new", listener))
        new.wait_ready()
        old.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert old.process.wait(LIMIT_S) == 0
        assert models(listener) == ["new"]


def test_connections_wait_where_no_server_is_ready(listener: socket.socket) -> None:
    with socket.create_connection(listener.getsockname()) as early:
        early.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        early.settimeout(LIMIT_S)
        with started("only", listener):
            assert early.recv(15) == b"HTTP/1.1 200 OK"


def test_a_server_ends_with_its_supervisor(listener: socket.socket) -> None:
    with started("only", listener) as child:
        child.wait_ready()
        child.link.close()
        assert child.process.wait(LIMIT_S) == 0


def test_a_number_that_is_no_socket_is_refused() -> None:
    with pytest.raises(BriseError, match="--listen-fd is 999999, which is no open socket"):
        supervised(999999, 999999)
