"""`POST /v1/actions`: chunks of commands over HTTP and in Python, by an adapter that was trained on actions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import brise
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.engine.engine import EngineSettings
from brise.engine.model import LoadedModel, load
from brise.errors import BriseError
from brise.text.action_space import Actions, ActionSpace, ActionValue, with_rarest_tokens
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.serve.live import Live, live

SPACE = ActionSpace("cart", (ActionValue("v", -1.0, 1.0, 9, "m/s", 0.25), ActionValue("w", -2.0, 2.0, 5, brake=0.5)),
                    steps=3, period_s=0.1)
SCRIPTS = {"back": lambda last: last - np.array([0.2, 3.0]), "broken": lambda last: last[5],
           "short": lambda last: last[:1]}
ASK: dict[str, Any] = {"model": "cart", "messages": [{"role": "user", "content": "go to the red ball"}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama"), threads=2)


@pytest.fixture(scope="module")
def actions(model: LoadedModel) -> Actions:
    return with_rarest_tokens(SPACE, model.tokenizer)


@pytest.fixture(scope="module")
def adapters(model: LoadedModel, actions: Actions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters, of which `cart` moves a robot."""
    config, root = open_checkpoint(model.path).config, tmp_path_factory.mktemp("adapters")
    made = replace(LINEAGE, settings={**LINEAGE.settings, **actions.settings()})
    for name, lineage in (("cart", made), ("chat", LINEAGE)):
        write_adapter(root / name, AdapterFile(random_low_ranks(config, 1), 3, 6.0), lineage, config)
    return root


@pytest.fixture(scope="module")
def server(model: LoadedModel, adapters: Path) -> Iterator[Live]:
    with live(model, engine_settings=EngineSettings(num_pages=128, max_adapters=2, max_rank=8)) as running:
        for name in ("cart", "chat"):
            running.worker.add_adapter(name, adapters / name, any_base=True)
        yield running
        running.wait_idle()


def post(server: Live, **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/actions", json={**ASK, **more}, timeout=30)


def test_a_chunk_has_the_space_the_times_and_commands_within_limits_and_rates(server: Live) -> None:
    body = post(server, last=[0.9, 1.0]).json()
    assert (body["space"], body["names"], body["units"]) == ("cart", ["v", "w"], ["m/s", ""])
    assert body["times_s"] == pytest.approx([0, 0.1, 0.2]) and body["num_decided"] == 3 and body["late"] is False
    commands = np.array(body["commands"])
    assert commands.shape == (3, 2) and np.all(np.abs(commands) <= [1, 2])
    assert np.all(np.abs(np.diff(np.vstack([[0.9, 1.0], commands])[:, 0])) <= 0.25 + 1e-9)
    assert body["usage"]["completion_tokens"] == 6


def test_the_same_question_gets_the_same_chunk(server: Live) -> None:
    assert post(server).json()["commands"] == post(server).json()["commands"]


@pytest.mark.parametrize(("fallback", "expected"), [("hold", [0.5, 0.0]), ("brake", [0.25, 0.5])])
def test_a_late_answer_has_the_fallback_for_the_missing_steps(server: Live, fallback: str, expected: list[float],
                                                              ) -> None:
    body = post(server, deadline_ms=0.001, fallback=fallback, last=[0.5, 0.0]).json()
    assert body["late"] is True and body["num_decided"] == 0
    assert body["commands"][0] == pytest.approx(expected)


@pytest.mark.parametrize(("script", "expected"), [
    ("back", [0.3, -2.0]), ("broken", [0.25, 0.5]), ("short", [0.25, 0.5])])
def test_a_registered_script_gives_the_missing_steps_and_one_that_fails_brakes(python: brise.Model, script: str,
                                                                               expected: list[float]) -> None:
    ask = {**ASK, "deadline_ms": 0.001, "fallback": f"scripted:{script}", "last": [0.5, 0.0]}
    with brise.serve({"tiny": python}, port=0, scripts=SCRIPTS) as server:
        body = httpx.post(f"{server.url}/actions", json=ask, timeout=30).json()
        other = httpx.post(f"{server.url}/actions", json={**ask, "fallback": "scripted:up"}, timeout=30)
    assert body["late"] is True and body["commands"][0] == pytest.approx(expected)
    assert other.status_code == 400 and "scripted:back" in other.json()["error"]["message"]
    chunk = python.act(ASK["messages"], adapter="cart", deadline_ms=0.001, last=[0.5, 0.0],
                       fallback=f"scripted:{script}", scripts=SCRIPTS)
    assert chunk.commands.tolist() == body["commands"]


@pytest.fixture(scope="module")
def python(model: LoadedModel, adapters: Path) -> Iterator[brise.Model]:
    """The same model in this program."""
    with brise.load(model.path) as loaded:
        for name in ("cart", "chat"):
            loaded.add_adapter(name, adapters / name, any_base=True)
        yield loaded


def test_python_gets_what_http_gets(server: Live, python: brise.Model) -> None:
    chunk = python.act(ASK["messages"], adapter="cart", last=[0.9, 1.0])
    assert chunk.commands.tolist() == post(server, last=[0.9, 1.0]).json()["commands"]
    assert chunk.space == SPACE and not chunk.is_late


@pytest.mark.parametrize(("more", "named"), [
    ({"deadline_ms": 0}, "deadline_ms"), ({"deadline_ms": "soon"}, "deadline_ms"), ({"fallback": "zero"}, "fallback"),
    ({"last": [1]}, "2 values"), ({"last": [1, None]}, "last"), ({"priority": 3}, "priority"),
    ({"tools": [{"type": "function"}]}, "tools"), ({"max_tokens": 5}, "max_tokens"), ({"stream": True}, "stream"),
    ({"n": 2}, "n"), ({"logprobs": True}, "logprobs"),
    ({"model": "chat"}, "trained on no actions"), ({"model": "stub"}, "trained on no actions"), ({"model": "x"}, "x")])
def test_what_cannot_be_is_refused_by_name(server: Live, more: dict[str, Any], named: str) -> None:
    answer = post(server, **more)
    assert 400 <= answer.status_code < 500 and named in answer.json()["error"]["message"]


def test_fields_of_chats_that_ask_for_nothing_are_accepted(server: Live) -> None:
    defaults = {"stream": False, "n": 1, "tools": [], "tool_choice": "auto", "stop": [], "logprobs": False,
                "top_logprobs": 0, "max_tokens": -1, "response_format": {"type": "text"}, "temperature": None}
    answers = [post(server, **{name: value}) for name, value in defaults.items()] + [post(server, **defaults)]
    assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    assert all(answer.json()["commands"] == answers[0].json()["commands"] for answer in answers)


@pytest.mark.parametrize("field", ["deadline_ms", "fallback"])
def test_other_routes_refuse_what_only_actions_have(server: Live, field: str) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**ASK, field: "hold" if field == "fallback" else 5})
    assert answer.status_code == 400 and field in answer.json()["error"]["message"]


def test_python_refuses_by_name(python: brise.Model) -> None:
    with pytest.raises(BriseError, match="fallback"):
        python.act("go", adapter="cart", fallback="zero")
    with pytest.raises(BriseError, match="'hold', 'brake', 'scripted:back'"):
        python.act("go", adapter="cart", fallback="scripted:forth", scripts=SCRIPTS)
    with pytest.raises(BriseError, match="trained on no actions"):
        python.act("go", adapter="chat")
