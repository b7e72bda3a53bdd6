"""`brise serve` as a process: it says where it listens, answers, and leaves in good order."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from brise.cli.main import main, parse


def test_it_serves_under_the_given_name_and_ends_at_ctrl_c(tiny_path: Path) -> None:
    words = ["serve", f"small={tiny_path}", "--port", "0", "--context", "256", "--cache", "q8", "--threads", "1",
             "--parallel", "2", "--queue", "3", "--log-level", "warning"]
    with subprocess.Popen([sys.executable, "-m", "brise", *words], stderr=subprocess.PIPE, text=True,
                          restore_signals=True) as server:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        url = next(match[1] for line in lines if (match := re.search(r"(http://\S+)/v1", line)))
        with httpx.Client(base_url=url, timeout=60) as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["small"]
            answer = client.post("/v1/chat/completions", json={
                "model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}).json()
        assert answer["usage"]["completion_tokens"] <= 3
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


@pytest.mark.parametrize(("words", "message"), [
    (["--host", "0.0.0.0"], "without API keys"), (["--host", "::"], "--api-keys FILE"),
    (["--api-keys", "/no/such/file"], "cannot read the API keys"),
    (["--context", "100000"], "100000 tokens"), (["again={}"], None), (["{}"], "two models are called 'tiny'"),
    (["absent"], "no model 'absent'"), (["--port", "1", "--host", "192.0.2.1", "--allow-insecure-bind"],
                                        "cannot listen")])
def test_what_cannot_be_served_is_an_error_before_anything_listens(
        tiny_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str | None) -> None:
    words = ["serve", str(tiny_path), *(word.format(tiny_path) for word in words)]
    if message is None:
        assert parse(words).models == words[1:]
        return
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_keys_and_port_are_looked_at_before_a_model_is_loaded(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path / "damaged.gguf"), "--port", port]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "damaged.gguf"), "--api-keys", str(tmp_path / "none")]) == 1
    assert "cannot read the API keys" in capsys.readouterr().err
    assert main(["serve", str(tmp_path / "damaged.gguf"), "--port", "0"]) == 1
    assert "damaged.gguf: version" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--port", "65536"], ["--port", "-1"], ["--parallel", "0"], ["--cache", "f64"],
                                   ["--threads", "257"]])
def test_numbers_out_of_range_are_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["serve", "m", *words])
    assert left.value.code == 2
