"""`brise serve` as a process: it says where it listens, answers, and leaves in good order."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from brise.checkpoint.open import open_checkpoint
from brise.cli import serve
from brise.cli.main import main, parse
from brise.data.count_ngrams import count_ngrams
from brise.data.ngrams import FILE
from brise.text.load import tokens_for
from tests.checkpoint.make_adapter import written
from tests.waiting import LIMIT_S


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


def test_adapters_are_served_under_their_names_within_the_promise(tiny_path: Path, tmp_path: Path) -> None:
    adapter = adapter_in(tmp_path / "adapter", tiny_path)
    table = Path(adapter) / FILE
    table.write_bytes(count_ngrams([], tokens_for(open_checkpoint(tiny_path)).tokenizer, "rows"))
    words = ["serve", f"small={tiny_path}", "--ngrams", str(table), "--adapter", f"one={adapter}", "--any-base",
             "--port", "0", "--context", "128", "--memory", "400MB", "--parallel", "2",
             "--max-adapters", "2", "--adapter-rank", "4"]
    with subprocess.Popen([sys.executable, "-m", "brise", *words], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            url = next(match[1] for line in lines if (match := re.search(r"(http://\S+)/v1", line)))
            with httpx.Client(base_url=url, timeout=LIMIT_S) as client:
                cards = client.get("/v1/models").json()["data"]
                drafts = [card["drafts"] for card in client.get("/v1/adapters").json()["data"]]
                answers = [client.post("/v1/completions", json={
                    "model": card["id"], "prompt": "the wind", "max_tokens": 16, "temperature": 0}).json()
                    for card in cards]
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert [(card["id"], card.get("parent")) for card in cards] == [("small", None), ("one", "small")]
    assert [answer["model"] for answer in answers] == ["small", "one"] and drafts == [f"drafts from {FILE}"]
    assert answers[0]["choices"][0]["text"] != answers[1]["choices"][0]["text"]


def adapter_in(folder: Path, model: Path) -> str:
    return str(written(folder, open_checkpoint(model).config))


@pytest.mark.parametrize(("words", "message"), [
    (["--adapter", "one={}"], "no adapter can be loaded"), (["--adapter", "tiny=ADAPTER"], "'tiny' is taken"),
    (["--adapter", "a=ADAPTER", "--adapter", "a=ADAPTER"], "'a' is taken"), (["--adapter", "a/b=ADAPTER"], "'a/b'"),
    (["--adapter", "a=ADAPTER"], "was trained on smollm2"), (["again={}", "--adapter", "a=ADAPTER"], "for one model"),
    (["--adapter", "a=ADAPTER", "--any-base", "--adapter-rank", "2"], "rank 3, allowed is 1 to 2"),
    (["--adapter", "a=ADAPTER", "--max-adapters", "0"], "--max-adapters is 0"),
    (["--ngrams", "none.bin"], "there is no table of n-grams 'none.bin'"),
    (["again={}", "--ngrams", "none.bin"], "--ngrams is for one model"),
    (["--adapter", "a=ADAPTER", "--any-base", "--adapter-memory", "1kB"], "adapters have 1000")])
def test_adapters_that_cannot_be_served_are_errors(tiny_path: Path, tmp_path: Path, words: list[str], message: str,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    adapter = adapter_in(tmp_path / "adapter", tiny_path)
    words = [word.replace("ADAPTER", adapter).replace("{}", str(tiny_path)) for word in words]
    assert main(["serve", str(tiny_path), *words, "--port", "0", "--context", "64"]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["one", "=x", "one="])
def test_an_adapter_needs_a_name_and_a_folder(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["serve", "m", "--adapter", text])
    assert left.value.code == 2 and "must be NAME=FOLDER" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["--host", "0.0.0.0"], "without API keys"), (["--host", "::"], "--api-keys FILE"),
    (["--api-keys", "/no/such/file"], "cannot read the API keys"),
    (["--context", "100000"], "100000 tokens"), (["again={}"], None), (["{}"], "two models are called 'tiny'"),
    (["absent"], "no model 'absent'"),
    (["--page", "--host", "192.0.2.1", "--allow-insecure-bind"], "without API keys: everybody could read your traffic"),
    (["--port", "1", "--host", "192.0.2.1", "--allow-insecure-bind"], "cannot listen")])
def test_what_cannot_be_served_is_an_error_before_anything_listens(
        tiny_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str | None) -> None:
    words = ["serve", str(tiny_path), *(word.format(tiny_path) for word in words)]
    if message is None:
        assert parse(words).models == words[1:]
        return
    assert main(words) == 1
    assert message in capsys.readouterr().err


def test_scripts_and_rules_are_read_before_a_model_is_loaded(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, rules = tmp_path / "own.py", tmp_path / "rules.toml"
    file.write_text("three = 3\ndef slow(last):\n    return 0.5 * last\n")
    given = ["--script", f"slow={file}:slow", "--script", "sq=numpy:sqrt"]
    scripts = serve.scripts_of(parse(["serve", "m", *given]))
    assert scripts["slow"](np.array([4.0])) == 2 and scripts["sq"](np.array([4.0])) == 2
    rules.write_text("functions = 3")
    for words, message in (
            (["--script", "slow"], "allowed is NAME=FILE.py:FUNCTION"), (["--script", "a=b/c:d"], "MODULE:FUNCTION"),
            (["--script", f"a={file}:fast"], "no function 'fast'"),
            (["--script", f"a={file}:three"], "has 3 as function"),
            (["--script", f"a={tmp_path}/none.py:f"], "none.py cannot be run: FileNotFoundError"),
            (["--script", "a=no.such:f"], "no.such cannot be run: ModuleNotFoundError"),
            (["--script", "a=math:sin", "--script", "a=math:cos"], "two scripts are called 'a'"),
            (["--rules", str(rules)], "'functions' is 3"),
            (["--rules", str(tmp_path / "none.toml")], "none.toml: No such"),
            (["--rules", str(rules), "--upstream", "http://127.0.0.1:1/v1"], "--rules hold back calls of models")):
        assert main(["serve", str(tmp_path / "none.gguf"), *words]) == 1
        assert message in capsys.readouterr().err, words


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
