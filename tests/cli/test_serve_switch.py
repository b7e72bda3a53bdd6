"""From one terminal `brise serve`, from the other `brise switch` and `brise audit`: the whole way, as users have it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from brise.cli.main import main
from tests.gateway.fake_upstream import FakeUpstream, fake_upstream
from tests.waiting import wait_until


@contextmanager
def gateway(fake: FakeUpstream, model: Path) -> Iterator[httpx.Client]:
    words = ["serve", f"small={model}", "--upstream", f"http://127.0.0.1:{fake.port}/v1", "--port", "0", "--context",
             "256", "--threads", "1", "--log-level", "warning"]
    with subprocess.Popen([sys.executable, "-m", "brise", *words], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            url = next(match[1] for line in lines if (match := re.search(r"at (http://\S+)/v1", line)))
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                yield client
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()


def mode(client: httpx.Client) -> str:
    answer = client.post("/v1/chat/completions", json={
        "model": "calls", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 8,
        "temperature": 0, "logit_bias": {"1": 2}})
    assert answer.status_code == 200, answer.text
    return answer.headers["x-brise-mode"]


def test_a_task_is_switched_and_back_from_another_terminal(tiny_path: Path, home: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    force = ("--force", "--reason", "a trial")
    with fake_upstream() as fake, gateway(fake, tiny_path) as client:
        assert mode(client) == "hosted"
        assert main(["switch", "calls", "--candidate", "small", "--share", "100", *force]) == 0
        wait_until(lambda: mode(client) in ("small", "escalated"))
        assert main(["switch", "calls", "--back"]) == 0
        assert mode(client) != "small"
    capsys.readouterr()
    assert main(["audit", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [event["kind"] for event in found["events"]] == ["switch", "back"] and found["is_whole"]
