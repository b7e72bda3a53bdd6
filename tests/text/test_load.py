"""Which of a model's files decides on tokenizer and chat format."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest

from brise.errors import BriseError, CheckpointError, MissingExtraError
from brise.text.chat import ChatTemplate
from brise.text.conversation import suggested_system
from brise.text.load import tokens_for
from brise.text.mistral_chat import MistralChat
from tests.text import tekken
from tests.text.test_hf_tokenizer import CONFIG, write
from tests.text.vocabulary import CHATML, metadata

TOOLS_TEMPLATE = "[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS][ARGS]"


@dataclass(frozen=True)
class Files:
    """A checkpoint without weights."""

    folder: Path
    metadata: dict[str, object] = field(default_factory=dict)


def source(chat: object) -> str:
    assert isinstance(chat, ChatTemplate)
    return chat.source


def test_tekken_comes_first(tmp_path: Path) -> None:
    tekken.write(tmp_path)
    write(tmp_path)
    tokens = tokens_for(Files(tmp_path))
    assert isinstance(tokens.chat, MistralChat) and tokens.tokenizer.vocab_size == 2040


def test_tekken_beside_a_gguf_file_of_the_same_vocabulary_does_too(tmp_path: Path) -> None:
    tekken.write(tmp_path)
    assert isinstance(tokens_for(Files(tmp_path, tekken.gguf_metadata())).chat, MistralChat)
    llama = metadata(**{"chat_template": CHATML})
    assert tokens_for(Files(tmp_path, llama)).tokenizer.vocab_size == 269  # another kind of vocabulary


def test_tekken_of_another_model_beside_a_gguf_file_is_refused(tmp_path: Path) -> None:
    tekken.write(tmp_path, "v7")
    with pytest.raises(CheckpointError, match="not this model's"):
        tokens_for(Files(tmp_path, {**tekken.gguf_metadata(), "tokenizer.ggml.tokens": ["<s>"] * 2040}))


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tekken.write(tmp_path)
    for name in ("brise.text.mistral", "brise.text.mistral_chat", "mistral_common"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'brise\[mistral\]'"):
        tokens_for(Files(tmp_path))


def test_a_template_lies_in_one_of_three_files(tmp_path: Path) -> None:
    write(tmp_path)
    assert tokens_for(Files(tmp_path)).chat is None  # a base model
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**CONFIG, "chat_template": [
        {"name": "tool_use", "template": "t"}, {"name": "default", "template": "one"}]}))
    assert source(tokens_for(Files(tmp_path)).chat) == "one"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "two"}))
    assert source(tokens_for(Files(tmp_path)).chat) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert source(tokens_for(Files(tmp_path)).chat) == "three"


def test_generation_config_names_more_ends(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert {7, 8} <= tokens_for(Files(tmp_path)).tokenizer.end_ids


def test_a_mistral_template_in_a_gguf_file_knows_tools_in_its_own_format() -> None:
    tokens = tokens_for(Files(Path("/nowhere"), {**tekken.gguf_metadata(), "tokenizer.chat_template": TOOLS_TEMPLATE}))
    assert tokens.chat is not None and tokens.chat.knows_tools and tokens.chat.format.calls == "named"
    old = {**tekken.gguf_metadata("v7"), "tokenizer.chat_template": TOOLS_TEMPLATE.replace("[ARGS]", "")}
    chat = tokens_for(Files(Path("/nowhere"), old)).chat
    assert chat is not None and chat.knows_tools and chat.format.calls == "list"


@pytest.mark.parametrize(("name", "content", "kind", "message"), [
    ("README.md", "", CheckpointError, "no tokenizer"),
    ("tokenizer.model", "", CheckpointError, "no pieces"),
    ("tokenizer.json", "{", CheckpointError, "no JSON"), ("SYSTEM_PROMPT.txt", b"\xff", CheckpointError, "UTF-8"),
    ("SYSTEM_PROMPT.txt", b"a" * (1 << 23), CheckpointError, "bytes")])
def test_what_is_missing_or_broken_is_named(tmp_path: Path, name: str, content: str | bytes, kind: type[BriseError],
                                            message: str) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(kind, match=message):
        tokens_for(Files(tmp_path))


def test_the_suggested_system_prompt_is_filled_in_and_cut_into_parts(tmp_path: Path) -> None:
    tekken.write(tmp_path)
    text = "You are {name}, {today}. {other}\n[THINK]Draft.[/THINK]Answer of {yesterday}."
    (tmp_path / "SYSTEM_PROMPT.txt").write_text(text)
    assert tokens_for(Files(tmp_path)).system_prompt == text
    assert suggested_system(text, "M", date(2026, 3, 1), can_think=True) == [
        {"type": "text", "text": "You are M, 2026-03-01. {other}\n"},
        {"type": "thinking", "thinking": "Draft.", "closed": True},
        {"type": "text", "text": "Answer of 2026-02-28."}]
    assert suggested_system("{name}", "M", date(2026, 3, 1), can_think=True) == "M"
    assert "[THINK]" in suggested_system(text, "M", date(2026, 3, 1), can_think=False)
