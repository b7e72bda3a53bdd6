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
from tempfile import TemporaryDirectory

import httpx
import pytest

from tests.checkpoint.make_gguf import write_tiny
from tests.waiting import LIMIT_S, wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from pathlib import Path
from brise.engine.engine_thread import EngineThread
from brise.serve.app import run_server
from brise.serve.serving import ServeSettings
from tests.engine.stub import stub_engine

def step(batch):
    time.sleep(0.01)
    while Path(sys.argv[2]).exists():
        time.sleep(0.01)

worker = EngineThread(stub_engine(on_step=step, num_pages=2000))
worker.start()
sys.exit(run_server({"stub": worker}, ServeSettings(port=0, drain_timeout_s=float(sys.argv[1]))))
"""


class Process:
    """A server in its own process; `lines` are the lines that it has written."""

    def __init__(self, process: subprocess.Popen[str], hold: Path) -> None:
        self._hold = hold
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """The engine stands still as long as the block runs."""
        self._hold.touch()
        yield
        self._hold.unlink()

    def finish(self) -> int:
        status = self.process.wait(LIMIT_S)
        self._reader.join()
        return status

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)


@contextmanager
def serving(drain_timeout_s: float) -> Iterator[Process]:
    with TemporaryDirectory() as folder, subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(drain_timeout_s), f"{folder}/hold"], cwd=ROOT, stderr=subprocess.PIPE,
            text=True) as process:
        try:
            yield Process(process, Path(folder) / "hold")
        finally:
            process.kill()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=LIMIT_S) as opened:
        yield opened


def test_sigterm_finishes_running_requests_refuses_new_ones_and_exits_0(client: httpx.Client) -> None:
    with serving(60) as server, httpx.Client(timeout=LIMIT_S, trust_env=False) as other:
        assert other.get(f"{server.url}/health").status_code == 200
        stream = server.stream(client, 30)
        begun = next(stream)
        with server.held():
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: other.get(f"{server.url}/health").status_code != 200)
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


LOST = re.compile("leak|resource_tracker|semaphore|destroyed|unclosed|never awaited|Warning|Traceback", re.IGNORECASE)
IN_A_PROGRAM = """
import asyncio, sys
import brise, httpx

async def main(path, store):
    model = brise.load(path, threads=1)
    async with (brise.serve({"tiny": model}, port=0) as server,
                brise.gateway(upstream="http://127.0.0.1:9/v1", small={"tiny": model}, store=store, port=0) as other,
                httpx.AsyncClient(trust_env=False, timeout=60) as client):
        for url, name in ((server.url, "tiny"), (other.url, "tiny"), (other.url, "gone")):
            await client.post(f"{url}/chat/completions", json={
                "model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_gateway_that_ends_leaves_nothing_behind_and_says_nothing(
        tmp_path: Path, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    tiny = write_tiny(tmp_path / "tiny.gguf", "llama")
    command = [sys.executable, "-X", "dev", "-W", "default", "-m", "brise", "serve", f"tiny={tiny}", "--port", "0",
               "--upstream", "http://127.0.0.1:9/v1", "--fallback", "tiny", "--retries", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/v1$", line)))
        for name in ("tiny", "gone"):  # a model with a template's process, and an answer of the fallback
            answer = client.post(f"{url}/chat/completions", json={
                "model": name, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]})
            assert answer.status_code == 200
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(LIMIT_S) == 0
    assert LOST.findall(rest) == [], rest


def test_servers_in_a_program_that_ends_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    tiny = write_tiny(tmp_path / "tiny.gguf", "llama")
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "default", "-c", IN_A_PROGRAM, str(tiny),
                           str(tmp_path / "traffic.sqlite")], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and LOST.findall(done.stderr) == [], done.stderr
