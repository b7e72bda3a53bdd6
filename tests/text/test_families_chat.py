"""Chat formats of Granite, Phi-4-mini and SmolLM3: the same tokens as transformers, and calls that are found again.

The templates are short ones of the same form: what roles stand between, where tools go, what marks a call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from brise.text.answer_events import Parsed, ParsedCallArguments, ParsedCallStart, ParsedText
from brise.text.load import Tokens, tokens_for
from brise.text.special_tokens import CALL, END_CALL
from brise.text.tool_calls import ArrayCallParser
from brise.text.tool_grammar import tool_grammar
from tests.text.vocabulary import MERGES, byte_letters

# Granite 4 describes tools in <tools> and calls in <tool_call>; Granite 3 has a role for the tools.
GRANITE4 = (
    "{% if tools %}<|start_of_role|>system<|end_of_role|>You may call tools.\n<tools>"
    "{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\nFor each call: <tool_call></tool_call>"
    "<|end_of_text|>\n{% endif %}{% for message in messages %}<|start_of_role|>{{ message['role'] }}<|end_of_role|>"
    "{{ message['content'] or '' }}{% for call in message.tool_calls or [] %}\n<tool_call>\n"
    "{{ call.function | tojson }}\n</tool_call>{% endfor %}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}")
GRANITE3 = (
    "{% if tools %}<|start_of_role|>available_tools<|end_of_role|>{{ tools | tojson(indent=4) }}<|end_of_text|>\n"
    "{% endif %}{% for message in messages %}<|start_of_role|>{{ message['role'] }}<|end_of_role|>"
    "{{ message['content'] }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}")
PHI4 = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] "
    "is not none %}<|system|>{{ message['content'] }}<|tool|>{{ message['tools'] }}<|/tool|><|end|>{% else %}"
    "{{ '<|' + message['role'] + '|>' }}{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}")
ROLES = ("<|start_of_role|>", "<|end_of_role|>")
CONTROL = {
    GRANITE4: ("<|end_of_text|>", *ROLES, "<tool_call>", "</tool_call>"),
    GRANITE3: ("<|end_of_text|>", *ROLES, "<|tool_call|>"),
    PHI4: ("<|endoftext|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|/tool|>",
           "<|tool_call|>", "<|/tool_call|>")}
TOOLS = [{"type": "function", "function": {"name": "w", "description": "The weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
ASKED = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "In <|end|> Paris?"}]
CALLED: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "w", "arguments": '{"city": "Paris"}'}}]}


@dataclass(frozen=True)
class Folder:
    """A model's folder with its tokenizer."""

    folder: Path
    metadata: Mapping[str, object]


def folder_of(path: Path, template: str) -> Folder:
    """A byte-level tokenizer with the special tokens of this template's model."""
    words = [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in MERGES)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({word: id for id, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([*CONTROL[template]])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": CONTROL[template][0], "chat_template": template}))
    return Folder(path, {})


@pytest.mark.parametrize("template", CONTROL, ids=["granite4", "granite3", "phi4"])
def test_prompts_have_the_tokens_of_transformers(tmp_path: Path, template: str) -> None:
    transformers = pytest.importorskip("transformers")
    tokens = tokens_for(folder_of(tmp_path, template))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokens.chat is not None and tokens.chat.knows_tools
    harmless = [ASKED[0], {"role": "user", "content": "In Paris?"}]  # transformers makes tokens of what a user writes
    for tools in (None, TOOLS):
        given = harmless
        if template == PHI4 and tools:  # its template has them beside the system message
            given = [{**harmless[0], "tools": json.dumps([tools[0]["function"]])}, harmless[1]]
        expected = theirs.apply_chat_template(given, tools=tools, add_generation_prompt=True, tokenize=True)
        expected = expected if isinstance(expected, list) else expected["input_ids"]
        assert tokens.chat.encode(harmless, tools=tools) == expected


def test_calls_of_the_past_stand_in_the_models_own_form(tmp_path: Path) -> None:
    tokens = tokens_for(folder_of(tmp_path, PHI4))
    assert tokens.chat is not None
    ids = tokens.chat.encode([*ASKED, CALLED, {"role": "tool", "content": "rain"}], tools=TOOLS)
    opened, closed = (tokens.tokenizer.control[name] for name in ("<|tool_call|>", "<|/tool_call|>"))
    inside = ids[ids.index(opened) + 1:ids.index(closed)]
    assert json.loads(text_of(tokens, inside)) == [{"name": "w", "arguments": {"city": "Paris"}}]


def test_a_system_message_is_made_for_the_tools_of_phi_4(tmp_path: Path) -> None:
    tokens = tokens_for(folder_of(tmp_path, PHI4))
    assert tokens.chat is not None
    ids = tokens.chat.encode(ASKED[1:], tools=TOOLS)
    assert ids[0] == tokens.tokenizer.control["<|system|>"] and tokens.tokenizer.control["<|tool|>"] in ids


def text_of(tokens: Tokens, ids: list[int]) -> str:
    return b"".join(tokens.tokenizer.token_bytes(id) for id in ids).decode()


LIST = '[{"name": "w", "arguments": {"city": "Paris"}}, {"name": "w", "arguments": {}}]'
FOUND = [ParsedCallStart("w"), ParsedCallArguments('{"city": "Paris"}'), ParsedCallStart("w"),
         ParsedCallArguments("{}")]


@pytest.mark.parametrize("text", [f"{CALL}{LIST}", f"<tool_call>{LIST}", f"<tool_call> {LIST}</tool_call>"])
def test_a_list_of_calls_is_found_however_it_is_cut(text: str) -> None:
    for size in (1, 2, 5, 7, len(text)):
        parser = ArrayCallParser({"w"})
        parsed = [item for start in range(0, len(text), size) for item in parser.push(text[start:start + size])]
        assert together([*parsed, *parser.finish()]) == FOUND, size


@pytest.mark.parametrize("text", ["a <tool", "<b> and </tool", '<tool_call>{"name": "w"}', f"{CALL}[1]"])
def test_what_is_no_list_stays_text(text: str) -> None:
    parser = ArrayCallParser({"w"})
    parsed = together([*parser.push(text), *parser.finish()])
    assert parsed == [ParsedText(text.replace("<tool_call>", CALL))]


def test_the_closing_token_of_phi_4_is_no_text(tmp_path: Path) -> None:
    chat = tokens_for(folder_of(tmp_path, PHI4)).chat
    assert chat is not None and END_CALL in chat.format.tokens
    parser = chat.format.parser(["w"])
    assert together([*parser.push(f"{CALL}{LIST}{END_CALL}"), *parser.finish()]) == FOUND


@pytest.mark.parametrize(("template", "closing"), [(GRANITE3, ""), (PHI4, "<[{}]>")])
def test_a_grammar_allows_a_list_behind_the_token(tmp_path: Path, template: str, closing: str) -> None:
    tokens = tokens_for(folder_of(tmp_path, template))
    assert tokens.chat is not None
    grammar = tool_grammar(TOOLS, "required", tokens.chat.format)
    control = tokens.tokenizer.control
    assert grammar is not None
    (calls,) = [line for line in grammar.text.splitlines() if line.startswith("calls:")]
    assert calls.startswith(f'calls: <[{control["<|tool_call|>"]}]> "[" call (", " call)* "]"')
    assert calls.endswith(closing.format(control.get("<|/tool_call|>")) or '"]"')


def together(items: list[Parsed]) -> list[Parsed]:
    """Pieces of one text or of one call's arguments as one."""
    out: list[Parsed] = []
    for item in items:
        match out[-1] if out else None, item:
            case ParsedText(before), ParsedText(after):
                out[-1] = ParsedText(before + after)
            case ParsedCallArguments(before), ParsedCallArguments(after):
                out[-1] = ParsedCallArguments(before + after)
            case _:
                out.append(item)
    return out
