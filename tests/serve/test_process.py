"""`run_server` runs as a process and reacts to signals, from its first line to its exit status."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.serve.live import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from brise.engine.engine_thread import EngineThread
from brise.serve.app import run_server
from brise.serve.serving import ServeSettings
from tests.engine.stub import stub_engine

worker = EngineThread(stub_engine(on_step=lambda batch: time.sleep(0.01), num_pages=2000))
worker.start()
sys.exit(run_server({"stub": worker}, ServeSettings(port=0, drain_timeout_s=float(sys.argv[1]))))
"""


class Process:
    """A server in its own process; `lines` are the lines that it has written."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        self.process, self.lines = process, [process.stderr.readline()]
        address = re.search(r"http://127\.0\.0\.1:\d+", self.lines[0])
        assert address, self.lines
        self.url = address[0]
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def stream(self, client: httpx.Client, max_tokens: int) -> Iterator[str]:
        body = {"model": "stub", "prompt": "a", "stream": True, "ignore_eos": True, "max_tokens": max_tokens}
        with client.stream("POST", f"{self.url}/v1/completions", json=body) as answer:
            yield from filter(None, answer.iter_lines())

    def finish(self) -> int:
        status = self.process.wait(20)
        self._reader.join()
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)


@contextmanager
def serving(drain_timeout_s: float) -> Iterator[Process]:
    command = [sys.executable, "-c", PROGRAM, str(drain_timeout_s)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=20) as opened:
        yield opened


def test_sigterm_finishes_running_requests_refuses_new_ones_and_exits_0(client: httpx.Client) -> None:
    with serving(60) as server, httpx.Client(trust_env=False) as other:
        assert other.get(f"{server.url}/health").status_code == 200
        stream = server.stream(client, 100)
        begun = next(stream)
        server.process.send_signal(signal.SIGTERM)
        while other.get(f"{server.url}/health").status_code == 200:
            pass
        assert other.post(f"{server.url}/v1/completions", json={}).status_code == 503
        rest = list(stream)
        assert begun.startswith("data: {") and rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.finish() == 0
    assert any("stopping: 1 requests run" in line for line in server.lines)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_requests_that_take_too_long_end_with_an_error(client: httpx.Client, signals: list[signal.Signals]) -> None:
    with serving(0.1 if len(signals) == 1 else 60) as server:
        stream = server.stream(client, 4000)
        next(stream)
        for number in signals:
            server.process.send_signal(number)
            wait_until(lambda: any("stopping" in line for line in server.lines))
        rest = list(stream)
        assert rest[-2] == "event: error" and "shutting_down" in rest[-1]
        assert server.finish() == 0


def test_a_server_with_nothing_to_do_stops_at_once() -> None:
    with serving(60) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.finish() == 0
    assert not any("Traceback" in line for line in server.lines), server.lines
