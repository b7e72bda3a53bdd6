"""Checking that the chat format of a served model encodes conversations to the tokens that were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brise.data.example import EncodedRow, TrainingExample
from brise.data.render import Targets, prompt_of, rows_of
from brise.models.weights import Array
from brise.text.load import Tokens
from brise.text.protocols import TextTokenizer

CONTEXT = 8  # tokens shown before and after the first difference


@dataclass(frozen=True)
class TemplateFault:
    """The first difference of a row: `what` was encoded, and the tokens of both sides around it."""

    place: str
    what: str
    index: int
    trained: str
    served: str

    def __str__(self) -> str:
        return (f"{self.place}: {self.what} differs at token {self.index} from what was trained on\n"
                f"  trained: {self.trained}\n  served:  {self.served}")


def check(served: Tokens, examples: Sequence[TrainingExample], rows: Sequence[EncodedRow], *,
          targets: Targets = "assistant",
          as_text: bool = False) -> list[TemplateFault]:
    """The first fault of each example: in its rows, or in its last prompt as the server would encode it.

    A row belongs to the example of the same `place`. The prompt must end exactly where the last answer of the last row
    begins.
    """
    own: dict[str, list[EncodedRow]] = {}
    for row in rows:
        own.setdefault(row.place, []).append(row)
    faults = []
    for example in examples:
        trained = own.get(example.place, [])
        if not trained:
            continue
        fault = _of_rows(served, trained, rows_of(example, served, targets=targets, as_text=as_text))
        if fault is None and not as_text and targets == "assistant":
            fault = _of_prompt(served, trained[-1], prompt_of(example, served))
        if fault is not None:
            faults.append(fault)
    return faults


def _of_rows(served: Tokens, trained: Sequence[EncodedRow], expected: Sequence[EncodedRow]) -> TemplateFault | None:
    if len(trained) != len(expected):
        return TemplateFault(trained[0].place, "the number of rows", 0, str(len(trained)), str(len(expected)))
    for row, other in zip(trained, expected, strict=True):
        fault = _compare(served.tokenizer, row.place, "the conversation", row.tokens, other.tokens)
        if fault is not None:
            return fault
        if not np.array_equal(row.is_target, other.is_target):
            index = int(np.flatnonzero(row.is_target != other.is_target)[0])
            return TemplateFault(row.place, "what is an answer", index, _show(served.tokenizer, row.tokens, index),
                                 _show(served.tokenizer, other.tokens, index))
    return None


def _of_prompt(served: Tokens, row: EncodedRow, prompt: Sequence[int]) -> TemplateFault | None:
    length = len(prompt)
    fault = _compare(served.tokenizer, row.place, "the last prompt", row.tokens[:length], np.array(prompt, np.int32))
    if fault is None and not (length < len(row.tokens) and row.is_target[length] and not row.is_target[length - 1]):
        shown = _show(served.tokenizer, row.tokens, length)
        return TemplateFault(row.place, "where the last answer begins", length, shown, shown)
    return fault


def _compare(tokenizer: TextTokenizer, place: str, what: str, trained: Array, served: Array) -> TemplateFault | None:
    shared = min(len(served), len(trained))
    (differing,) = np.nonzero(served[:shared] != trained[:shared])
    if len(served) == len(trained) and not len(differing):
        return None
    index = int(differing[0]) if len(differing) else shared
    return TemplateFault(place, what, index, _show(tokenizer, trained, index), _show(tokenizer, served, index))


def _show(tokenizer: TextTokenizer, tokens: Array, index: int) -> str:
    """The tokens around an index, separated by bars."""
    shown = tokens[max(0, index - CONTEXT):index + CONTEXT]
    return "|".join(tokenizer.token_text(int(token)).replace("\n", "\\n") for token in shown)
