"""Data files and tokenizers for tests of data/ and of training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from brise.data.example import EncodedRow, TrainingExample
from brise.data.parse_row import RowRules, parse_row
from brise.serve.openai_chat import parse_chat
from brise.serve.prompts import chat_job
from brise.text.chat import ChatTemplate
from brise.text.load import Tokens
from brise.text.protocols import TextTokenizer
from tests.engine.stub import stub_model
from tests.text.vocabulary import CHATML, CONTROL, tokenizer

LLAMA3 = ("{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
          "{{ m.content | trim }}<|eot_id|>{% endfor %}"
          "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}")
LLAMA3_CONTROL = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
# Shows what the last message thought, and forgets what those before it did.
FORGETS = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content and loop.last %}<think>\n"
           "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
           "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {
    "type": "object", "properties": {"x": {"type": "number"}}}}}
CALL = {"id": "abcdefgh1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}


def tokens(template: str = CHATML, control: Sequence[str] = CONTROL, **more: object) -> Tokens:
    """A tiny vocabulary with a chat template."""
    own = tokenizer(control=control, **more)  # type: ignore[arg-type]
    return Tokens(own, ChatTemplate(template, own))


def chat(user: str, answer: str, system: str | None = None, **more: object) -> dict[str, object]:
    """A row of one question and its answer."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, {"role": "user", "content": user}, {"role": "assistant", "content": answer}], **more}


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def example(row: Mapping[str, object], place: str = "data.jsonl:1", rules: RowRules | None = None) -> TrainingExample:
    """The row as it is read."""
    return parse_row(json.loads(json.dumps(row)), place, Path(), rules or RowRules())


def served(tokens: Tokens, messages: Sequence[object], tools: Sequence[object] = ()) -> tuple[int, ...]:
    """The prompt that the server makes of these messages of a request."""
    model = replace(stub_model(), tokenizer=tokens.tokenizer, chat=tokens.chat)
    body = {"model": "m", "messages": list(messages), **({"tools": list(tools)} if tools else {})}
    return chat_job(parse_chat(body), model).request.prompt  # type: ignore[arg-type]


def answers(row: EncodedRow) -> list[tuple[int, int]]:
    """Where the learned answers begin and end."""
    edges = [0, *row.is_target.astype(int).tolist(), 0]
    starts = [at for at in range(len(edges) - 1) if edges[at] < edges[at + 1]]
    ends = [at for at in range(len(edges) - 1) if edges[at] > edges[at + 1]]
    return list(zip(starts, ends, strict=True))


def learned(row: EncodedRow, tokenizer: TextTokenizer) -> list[str]:
    """The text of each answer that is learned, with its control tokens."""
    return [tokenizer.decode(row.tokens[start:end].tolist(), show_control=True) for start, end in answers(row)]
