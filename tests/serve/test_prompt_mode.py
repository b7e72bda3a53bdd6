"""Reasoning by the makers' system prompt: `prompt_mode`, and thinking in tags that are text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest

from brise.serve.openai_chat import parse_chat
from brise.serve.prompts import chat_job
from brise.text.load import Tokens
from brise.text.mistral import MistralTokenizer
from brise.text.mistral_chat import MistralChat
from tests.engine.stub import stub_model
from tests.serve.live import Live, live
from tests.text import tekken

SUGGESTED = "Think first.\n[THINK]Draft.[/THINK]Then answer."
TAGGED = "Draft between <think> and </think>, then answer."
BODY = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "prompt_mode": "reasoning"}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokens]:
    found = {}
    for version, suggested in (("v13", SUGGESTED), ("v7", TAGGED), ("v15", None)):
        own = MistralTokenizer(tekken.write(tmp_path_factory.mktemp(version), version))
        found[version] = Tokens(own, MistralChat.of(own), suggested)
    return found


@contextmanager
def serving(reply: str, tokens: Tokens) -> Iterator[Live]:
    with live(stub_model(reply, tokens=tokens)) as server:
        yield server
        server.wait_idle()


def prompt_of(tokens: Tokens, **more: object) -> str:
    model = stub_model("x", tokens=tokens)
    job = chat_job(parse_chat({**BODY, **more}), model)  # type: ignore[dict-item]
    return tokens.tokenizer.decode(job.request.prompt, show_control=True)


def test_the_makers_system_prompt_comes_first_in_parts(tokens: dict[str, Tokens]) -> None:
    system = "[SYSTEM_PROMPT]Think first.\n[THINK]Draft.[/THINK]Then answer."
    assert prompt_of(tokens["v13"]) == f"<s>{system}[/SYSTEM_PROMPT][INST]hi[/INST]"
    both = [{"role": "system", "content": "Be kind."}, *BODY["messages"]]  # type: ignore[misc]
    assert prompt_of(tokens["v13"], messages=both) == f"<s>{system}\n\nBe kind.[/SYSTEM_PROMPT][INST]hi[/INST]"
    for nothing in (None, ""):
        assert prompt_of(tokens["v13"], prompt_mode=nothing) == "<s>[INST]hi[/INST]"


def test_it_is_refused_by_name_where_there_is_no_such_prompt(tokens: dict[str, Tokens]) -> None:
    with serving("x", tokens["v15"]) as server:
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=BODY)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt_mode"
        assert "reasoning_effort" in refused.text
        unknown = httpx.post(f"{server.url}/v1/chat/completions", json={**BODY, "prompt_mode": "loud"})
        assert unknown.status_code == 400 and unknown.json()["error"]["param"] == "prompt_mode"


@pytest.mark.parametrize(("effort", "status"), [("high", 200), ("none", 200), ("low", 400)])
def test_small_4_takes_two_efforts(tokens: dict[str, Tokens], effort: str, status: int) -> None:
    with serving("x", tokens["v15"]) as server:
        body = {**BODY, "prompt_mode": None, "reasoning_effort": effort}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body)
        assert answer.status_code == status
        if status == 400:
            assert answer.json()["error"]["param"] == "reasoning_effort"


def test_thinking_in_tags_that_are_text_is_reasoning(tokens: dict[str, Tokens]) -> None:
    with serving("<think>\nWell.\n</think>\nA breeze.", tokens["v7"]) as server:
        message = httpx.post(f"{server.url}/v1/chat/completions", json=BODY).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Well.", "A breeze.")


@pytest.mark.parametrize(("answer", "reasoning", "text"), [
    ("<think>a</think>b", "a", "b"), ("<think>a < b</thin> c</think>d</think>", "a < b</thin> c", "d</think>"),
    ("plain <think>no</think>", "", "plain <think>no</think>"), ("<thi", "", "<thi"),
    ("<think>cut </thi", "cut </thi", "")])
def test_tags_are_found_however_the_text_is_cut(tokens: dict[str, Tokens], answer: str, reasoning: str,
                                                text: str) -> None:
    chat = tokens["v7"].chat
    assert chat is not None
    for size in (1, 2, 3, 100):
        parser = chat.format.parser(writes_tags=True)
        events = [event for at in range(0, len(answer), size) for event in parser.push(answer[at:at + size])]
        events += parser.finish()
        found = {"ParsedReasoning": "", "ParsedText": ""}
        for event in events:
            found[type(event).__name__] += event.text  # type: ignore[union-attr]
        assert found == {"ParsedReasoning": reasoning, "ParsedText": text}


def test_a_name_in_braces_is_filled_in(tokens: dict[str, Tokens]) -> None:
    assert "You are stub." in prompt_of(replace(tokens["v13"], system_prompt="You are {name}.[THINK]x[/THINK]"))
