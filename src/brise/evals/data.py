"""Reading the examples of an evaluation, by the rules by which `brise tune` reads training data.

The same row is therefore the same conversation for both, and a file that can be trained on can be evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from brise.data import identity
from brise.data.example import TrainingExample as Conversation
from brise.data.parse_row import RowRules
from brise.data.read_rows import NUM_SHOWN, Columns, FileRows, read_rows
from brise.data.render import UNLEARNED
from brise.data.split import split
from brise.errors import EvidenceError
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from brise.files.digests import text_digest
from brise.text.conversation import plain_text
from brise.text.protocols import Message

Turns = Literal["last", "all"]


@dataclass(frozen=True)
class Reading:
    """How files become examples; options that `brise tune` also has mean the same.

    `held_out_share`: only the conversations that tuning with this share and `split_seed` holds out of these files.
    `absorb_system`: True asks without the rows' system prompts, a text with this one instead.
    """

    turns: Turns = "last"
    rules: RowRules = RowRules()
    columns: Columns = Columns()
    held_out_share: float | None = None
    split_seed: int = 0
    absorb_system: bool | str = False


def read(paths: Sequence[Path], reading: Reading | None = None) -> tuple[EvalExample, ...]:
    """All examples of these files, in order. With turns "all" each answer of an assistant gives one, else the last.

    EvidenceError for any row that cannot be read: figures over part of the data are not figures of the data.
    """
    reading = reading or Reading()
    rows = read_rows(paths, reading.rules, reading.columns)
    if rows.bad or rows.left_out:
        raise EvidenceError("\n".join([_listed(rows), *rows.left_out.lines()]))
    chosen = rows.examples
    if reading.held_out_share is not None:
        chosen = [rows.examples[at] for at in split(chosen, reading.split_seed, reading.held_out_share).held_out]
        if not chosen:
            raise EvidenceError(f"of {len(rows.examples)} rows none is held out at a share of {reading.held_out_share}")
    return tuple(example for row in chosen for example in _examples(row, reading))


def as_json(answer: EvalAnswer) -> dict[str, object]:
    """An answer in the form of a file of answers; empty fields are left out."""
    out: dict[str, object] = {"text": answer.text, "finish": answer.finish}
    if answer.calls:
        out["calls"] = [{"name": call.name, "arguments": call.arguments} for call in answer.calls]
    for name, value in (("error", answer.error), ("nll", answer.nll)):
        if value is not None:
            out[name] = value
    return out | {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens} | (
        {"scored_tokens": answer.scored_tokens} if answer.scored_tokens else {})


def _examples(row: Conversation, reading: Reading) -> Iterator[EvalExample]:
    """Digests are those of the row in the file, so that a model without the system prompt can be compared with one that
    has it."""
    answers = [index for index, message in enumerate(row.messages)
               if index and message["role"] == "assistant" and message.get(UNLEARNED) != 0]
    messages = [{name: value for name, value in message.items() if name != UNLEARNED} for message in row.messages]
    for index in answers if reading.turns == "all" else answers[-1:]:
        prompt: Sequence[Message] = messages[:index]
        reference = _reference(messages[index])
        key = identity.canonical([prompt, as_json(reference), row.tools])
        if reading.absorb_system is not False:
            prompt = _absorbed(prompt, reading.absorb_system)
        yield EvalExample(tuple(prompt), reference, row.place, row.conversation,
                          text_digest(key)[:24], row.tools, row.provider, row.meta)


def _absorbed(prompt: Sequence[Message], system: bool | str) -> list[Message]:
    first: list[Message] = [{"role": "system", "content": system}] if isinstance(system, str) else []
    return [*first, *(message for message in prompt if message["role"] != "system")]


def _reference(message: Message) -> EvalAnswer:
    calls = cast(Sequence[Mapping[str, Any]], message.get("tool_calls") or ())
    return EvalAnswer(plain_text(message.get("content")), tuple(
        AnsweredCall(call["function"]["name"], json.dumps(call["function"]["arguments"], ensure_ascii=False))
        for call in calls))


def _listed(rows: FileRows) -> str:
    bad, number = rows.bad, len(rows.bad) + rows.left_out.total()
    lines = [f"  {row.place}: {row.reason}" for row in bad[:NUM_SHOWN]]
    more = [f"  and {len(bad) - NUM_SHOWN} more"] if len(bad) > NUM_SHOWN else []
    return "\n".join([f"{number} of {rows.number} rows cannot be evaluated:", *lines, *more])
