"""Mistral's SentencePiece versions: mistral-common's tokens, and calls that come back."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
from llguidance import LLMatcher
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as CommonTokenizer

from brise.checkpoint.gguf.write_tokenizer import vocabulary
from brise.errors import CheckpointError, RequestError, UnsupportedError
from brise.text.answer_events import ParsedCallStart
from brise.text.chat import ChatTemplate
from brise.text.conversation import encoded
from brise.text.load import Tokens, tokens_for
from brise.text.mistral_chat import MistralChat
from brise.text.mistral_pieces import open_pieces
from brise.text.protocols import Message
from brise.text.special_tokens import CALL
from brise.text.tool_grammar import tool_grammar
from tests.text.sentencepieces import V1, V2, V3, V7, gguf_metadata, trained
from tests.text.test_load import Files
from tests.text.trie import trie

FILES = {"v1": V1, "v2": V2, "v3": V3, "v7": V7}
SYSTEM: Message = {"role": "system", "content": "Be  brief."}
USER: Message = {"role": "user", "content": " Wind [INST] in Paris?\n"}
ANSWER: Message = {"role": "assistant", "content": "A breeze "}
AGAIN: Message = {"role": "user", "content": "And tomorrow 🙂?"}
TOOLS = [{"type": "function", "function": {"name": "wind", "description": "of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
CALL_OF_WIND = {"id": "abcdefghi", "type": "function",
                "function": {"name": "wind", "arguments": '{"city": "Paris"}'}}
RESULT: Message = {"role": "tool", "content": '{"beaufort": 3}', "tool_call_id": "abcdefghi", "name": "wind"}
CALLS: list[Message] = [{"role": "assistant", "content": "", "tool_calls": [CALL_OF_WIND]}, RESULT]


@cache
def opened(version: str) -> Tokens:
    tokenizer, common = open_pieces(FILES[version])
    return Tokens(tokenizer, MistralChat(tokenizer, common))


@cache
def reference(version: str) -> CommonTokenizer:  # type: ignore[type-arg]
    return CommonTokenizer.from_file(FILES[version])


def prompt(version: str, messages: Sequence[Message], **more: object) -> list[int]:
    chat = opened(version).chat
    assert chat is not None
    return list(chat.prompt(messages, **more).tokens)  # type: ignore[arg-type]


def theirs(version: str, messages: Sequence[Message], **more: object) -> list[int]:
    request = ChatCompletionRequest(messages=messages, **more)  # type: ignore[arg-type]
    return list(reference(version).encode_chat_completion(request).tokens)


@pytest.mark.parametrize("version", FILES)
def test_conversations_get_mistral_commons_tokens(version: str) -> None:
    messages = [SYSTEM, USER, ANSWER, AGAIN]
    assert prompt(version, messages) == theirs(version, messages)
    assert prompt(version, [USER]) == theirs(version, [USER])


@pytest.mark.parametrize("version", ["v2", "v3", "v7"])
def test_tools_calls_and_results_get_mistral_commons_tokens(version: str) -> None:
    for messages in ([SYSTEM, USER], [USER, *CALLS], [USER, *CALLS, ANSWER, AGAIN]):
        assert prompt(version, messages, tools=TOOLS) == theirs(version, messages, tools=TOOLS)


def test_version_1_is_told_of_tools_in_the_system_message() -> None:
    tokens = opened("v1")
    assert tokens.chat is not None and tokens.chat.format.calls == "tags"
    text = tokens.tokenizer.decode(encoded(tokens.chat, [USER], TOOLS).tokens)
    assert text.startswith("[INST] # Tools") and "<tool_call>" in text


def test_version_2_takes_one_result_only() -> None:
    two: list[Message] = [{"role": "assistant", "tool_calls": [CALL_OF_WIND, {**CALL_OF_WIND, "id": "bbbbbbbbb"}]},
                          RESULT, {**RESULT, "tool_call_id": "bbbbbbbbb"}]
    with pytest.raises(RequestError, match="multiple tool results"):
        prompt("v2", [USER, *two], tools=TOOLS)


@pytest.mark.parametrize("version", ["v2", "v3", "v7"])
def test_calls_come_back_and_are_constrained(version: str) -> None:
    tokenizer, chat = opened(version).tokenizer, opened(version).chat
    assert chat is not None
    call_id = "" if version == "v2" else ', "id": "abcdefghi"'
    ids = tokenizer.encode(f'[TOOL_CALLS][{{"name": "wind", "arguments": {{"city": "Paris"}}{call_id}}}]',
                           parse_control=True)
    assert tokenizer.token_bytes(ids[1]).startswith(b" ")  # as mistral-common has it
    parser = chat.format.parser(["wind"])
    pieces = [CALL if token == ids[0] else tokenizer.decode([token]) for token in ids]
    events = [event for piece in pieces for event in parser.push(piece)]
    assert any(isinstance(event, ParsedCallStart) and event.name == "wind" for event in events)
    grammar = tool_grammar(TOOLS, "required", chat.format)
    assert grammar is not None
    matcher = LLMatcher(trie(tokenizer), LLMatcher.grammar_from_lark(grammar.text))
    assert matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting(), matcher.get_error()


@pytest.mark.parametrize(("name", "source", "version"), [
    ("tokenizer.model.v3", V3, "v3"), ("tokenizer.model.v7m1", V7, "v7"), ("tokenizer.model", V1, "v1"),
    ("tokenizer.model", V3, "v3"), ("tokenizer.model", V7, "v7")])
def test_the_version_stands_in_the_name_or_in_the_vocabulary(tmp_path: Path, name: str, source: Path,
                                                             version: str) -> None:
    shutil.copy(source, tmp_path / name)
    (tmp_path / "params.json").write_text("{}")
    chat = tokens_for(Files(tmp_path)).chat
    assert isinstance(chat, MistralChat) and chat.version == version


def test_a_file_beside_a_gguf_file_has_to_be_its_own(tmp_path: Path) -> None:
    shutil.copy(V3, tmp_path / "tokenizer.model.v3")
    assert isinstance(tokens_for(Files(tmp_path, gguf_metadata(V3.read_bytes()))).chat, MistralChat)
    with pytest.raises(CheckpointError, match="not this model's"):
        tokens_for(Files(tmp_path, gguf_metadata(V1.read_bytes())))


def test_other_versions_and_files_without_their_tokens_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model.v3").write_bytes(trained("bpe"))
    with pytest.raises(CheckpointError, match=r"\[INST\]"):
        tokens_for(Files(tmp_path))
    shutil.move(tmp_path / "tokenizer.model.v3", tmp_path / "tokenizer.model.v11")
    with pytest.raises(UnsupportedError, match="version v11"):
        tokens_for(Files(tmp_path))


@pytest.mark.parametrize("version", FILES)
def test_a_gguf_file_gets_a_template_with_the_same_tokens(tmp_path: Path, version: str) -> None:
    shutil.copy(FILES[version], tmp_path / f"tokenizer.model.{version}")
    keys = {"general.architecture": "llama"} | vocabulary(tmp_path, 33000)
    tokens = tokens_for(Files(Path("/nowhere"), keys))
    assert isinstance(tokens.chat, ChatTemplate)
    said = {**ANSWER, "content": "A breeze"}
    for messages in ([USER], [SYSTEM, USER], [SYSTEM, USER, said, AGAIN]):
        assert list(tokens.chat.prompt(messages).tokens) == theirs(version, messages)
    if version != "v1":
        assert list(tokens.chat.prompt([SYSTEM, USER], tools=TOOLS).tokens) == theirs(version, [SYSTEM, USER],
                                                                                      tools=TOOLS)
