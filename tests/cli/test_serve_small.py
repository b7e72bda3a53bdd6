"""`brise serve --upstream` with small models that stand in: the options, and a process before a server that is gone."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from brise.cli import serve_gateway, serve_remote
from brise.cli.main import main, parse
from brise.errors import UnsupportedError
from brise.gateway.small_models import TaskModels

NOBODY = "http://127.0.0.1:9/v1"  # the port of the service "discard"


def options(*words: str, names: tuple[str, ...] = ("small",)) -> serve_gateway.SmallOptions:
    return serve_gateway.check_small(parse(["serve", "small", *words]), names)


def test_the_only_model_answers_in_the_shadow_and_nobody_stands_in_unasked() -> None:
    found = options("--upstream", NOBODY, "--shadow", "0.2")
    assert found.candidate == TaskModels("small") and found.fallback == TaskModels() and found.shadow == 0.2


@pytest.mark.parametrize("words, message", [
    (("--fallback", "small"), "--fallback needs a gateway"),
    (("--reask", "0.1"), "--reask needs a gateway"),
    (("--upstream", NOBODY, "--fallback", "big"), "--fallback 'big': 'big' is not served here; there is 'small'"),
    (("--upstream", NOBODY, "--candidate", "t=big", "--shadow", "1"), "--candidate 't=big'")])
def test_options_that_cannot_be_meant_are_errors(words: tuple[str, ...], message: str, tiny_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"small={tiny_path}", "--port", "0", *words]) == 1
    assert message in capsys.readouterr().err


def test_a_shadow_needs_to_know_who_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--upstream", NOBODY, "--port", "0", "--shadow", "0.5"]) == 1
    assert "name the model that answers" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["-0.1", "1.5", "some", "nan"])
def test_a_share_is_a_number_from_0_to_1(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["serve", "--upstream", NOBODY, "--shadow", share])
    assert "a number from 0 to 1" in capsys.readouterr().err


def test_before_a_server_that_is_gone_the_small_model_answers(tiny_path: Path, tmp_path: Path) -> None:
    words = ["serve", f"small={tiny_path}", "--port", "0", "--context", "256", "--upstream", NOBODY, "--fallback",
             "small", "--store", str(tmp_path / "traffic.sqlite")]
    with subprocess.Popen([sys.executable, "-m", "brise", *words], stderr=subprocess.PIPE, text=True,
                          restore_signals=True) as server:
        try:
            assert server.stderr is not None
            lines = iter(server.stderr.readline, "")
            url = next(match[1] for line in lines if (match := re.search(r" at (http://\S+)/v1", line)))
            body = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                whole = client.post("/v1/chat/completions", json=body)
                stream = client.post("/v1/chat/completions", json={**body, "stream": True})
                scraped = client.get("/metrics").text
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
        finally:
            server.kill()
    assert whole.json()["brise"] == {"mode": "degraded", "model": "small", "reason": "refused"}
    assert stream.headers["x-brise-mode"] == "degraded" and stream.text.endswith("data: [DONE]\n\n")
    assert 'brise_gateway_fallback_total{outcome="answered"} 2.0' in scraped


def test_a_dialect_is_for_an_upstream(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"small={tiny_path}", "--port", "0", "--upstream-dialect", "anthropic"]) == 1
    assert "--upstream-dialect needs a gateway" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value", "allowed"), [
    ("--keep-days", "0.0005", "days from 0.001 to 36500"), ("--total-timeout", "0", "seconds from 0.001 to 86400")])
def test_times_have_their_limits(option: str, value: str, allowed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--upstream", NOBODY, option, value])
    assert allowed in capsys.readouterr().err


REMOTE = ("--upstream", NOBODY, "--small", "mine=http://127.0.0.1:1/v1#tickets")


def test_a_remote_small_model_is_read_from_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALL_KEY", "secret")
    args = parse(["serve", *REMOTE, "--small-key-env", "SMALL_KEY", "--small-engine", "mine=vllm", "--small-timeout",
                  "5", "--small-probe-every", "60"])
    found = serve_remote.check(args, ["small"])["mine"]
    assert (found.url, found.model, found.key, found.engine) == ("http://127.0.0.1:1/v1", "tickets", "secret", "vllm")
    assert (found.limits.answer_s, found.probe_every_s) == (5, 60) and "secret" not in repr(found)


@pytest.mark.parametrize(("words", "message"), [
    ((*REMOTE, "--small", "mine=http://h/v1"), "two are called 'mine'"),
    (("--upstream", NOBODY, "--small", "http://h/v1"), "NAME=URL is needed"),
    (("--upstream", NOBODY, "--small", "small=http://h/v1"), "--small 'small': a model that is served here"),
    ((*REMOTE, "--small-engine", "tgi"), "--small-engine is 'tgi', allowed are brise, vllm"),
    ((*REMOTE, "--small-engine", "other=vllm"), "there is no --small 'other'"),
    ((*REMOTE, "--small", "b=http://h/v1", "--small-key-env", "K"), "it is not said for which"),
    ((*REMOTE, "--small-key-env", "mine=NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE")])
def test_wrong_options_of_remote_models_are_refused(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(message)):
        serve_remote.check(parse(["serve", *words]), ["small"])


def test_a_remote_small_model_needs_a_gateway() -> None:
    with pytest.raises(UnsupportedError, match="--small needs a gateway"):
        serve_gateway.check(parse(["serve", "smollm2", "--small", "mine=http://127.0.0.1:1/v1"]))
