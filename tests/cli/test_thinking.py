"""Reasoning at the terminal, and the system prompt that a model's makers suggest."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from brise.cli import chat
from brise.cli.chat import Stop
from brise.cli.chat_commands import ChatSession, execute
from brise.cli.chat_options import ChatSettings, change
from brise.cli.conversation import Conversation
from brise.engine.engine import Engine, EngineSettings
from brise.errors import RequestError
from brise.text.load import Tokens
from brise.text.mistral import MistralTokenizer
from brise.text.mistral_chat import MistralChat
from tests.engine.stub import stub_model
from tests.text import tekken

GREEDY = ChatSettings(temperature=0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> MistralTokenizer:
    return MistralTokenizer(tekken.write(tmp_path_factory.mktemp("tekken")))


def session(tokenizer: MistralTokenizer, reply: str, suggested: str | None = None,
            system: str | None = None) -> ChatSession:
    model = stub_model(reply, tokens=Tokens(tokenizer, MistralChat.of(tokenizer), suggested))
    engine = Engine(model, EngineSettings(num_pages=64))
    return ChatSession(Conversation(model, engine, system), GREEDY)


def test_thinking_goes_to_stderr_and_only_the_answer_to_stdout(
        tokenizer: MistralTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    talk = session(tokenizer, "[THINK]hm\x1b[2J[/THINK]yes")
    chat._answer(talk, "hi", Stop())
    assert capsys.readouterr() == ("yes\n", "[thinking]\nhm\x1b[2J\n[/thinking]\n")
    talk.options = change(talk.options, "thinking", "hide")
    chat._answer(talk, "hi", Stop())
    assert capsys.readouterr() == ("yes\n", "")
    with pytest.raises(RequestError, match="'show' or 'hide'"):
        change(talk.options, "thinking", "loud")


def test_at_a_terminal_thinking_is_dim_and_gives_no_commands(
        tokenizer: MistralTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    chat._answer(session(tokenizer, "[THINK]hm\x1b[2J[/THINK]yes"), "hi", Stop())
    shown = screen.getvalue()
    assert shown.startswith("\x1b[2m[thinking]\nh") and shown.endswith("[/thinking]\n\x1b[22m")
    assert shown.replace("\x1b[2m", "").replace("\x1b[22m", "") == "[thinking]\nhm\u241b[2J\n[/thinking]\n"


def test_a_turn_remembers_what_was_thought(tokenizer: MistralTokenizer) -> None:
    talk = session(tokenizer, "[THINK]hm[/THINK]yes")
    chat._answer(talk, "hi", Stop())
    assert talk.conversation.turns[1] == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
    tokens = talk.conversation.chat.prompt([*talk.conversation.turns, {"role": "user", "content": "V"}]).tokens
    assert tokenizer.decode(tokens, show_control=True) == "<s>[INST]hi[/INST][THINK]hm[/THINK]yes</s>[INST]V[/INST]"


def test_the_makers_system_prompt_is_sent_in_parts(tokenizer: MistralTokenizer, tmp_path: Path) -> None:
    talk = session(tokenizer, "yes", "You are {name}.[THINK]Draft.[/THINK]", "@model")
    tokens = talk.conversation.chat.prompt([*talk.conversation.messages, {"role": "user", "content": "U"}]).tokens
    assert tokenizer.decode(tokens, show_control=True) == (
        "<s>[SYSTEM_PROMPT]You are stub.[THINK]Draft.[/THINK][/SYSTEM_PROMPT][INST]U[/INST]")
    execute(talk, "/system -")
    assert talk.conversation.messages == []
    execute(talk, "/system @model")
    execute(talk, f"/save {tmp_path / 'chat.json'}")
    assert '"thinking": "Draft."' in (tmp_path / "chat.json").read_text()


def test_a_model_without_one_says_so(tokenizer: MistralTokenizer) -> None:
    with pytest.raises(RequestError, match="SYSTEM_PROMPT.txt"):
        session(tokenizer, "yes", None, "@model")


def test_text_that_a_person_types_is_no_thinking_part(tokenizer: MistralTokenizer) -> None:
    talk = session(tokenizer, "yes", None, "[THINK]Draft.[/THINK]")
    tokens = talk.conversation.chat.prompt([*talk.conversation.messages, {"role": "user", "content": "U"}]).tokens
    assert tokenizer.control["[THINK]"] not in tokens
