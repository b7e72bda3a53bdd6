"""Examples as a local model reads them: the same messages, tools and images that the server would be sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from brise.engine.model import LoadedModel
from brise.errors import RequestError
from brise.evals.example import Answer, Example
from brise.text.chat import require
from brise.text.conversation import encoded
from brise.text.protocols import Encoded, Message


@dataclass(frozen=True)
class Scored:
    """A prompt with its reference answer as tokens; the answer begins at `start` and ends with the text's end."""

    whole: Encoded
    start: int


def prompt(model: LoadedModel, example: Example) -> Encoded:
    """What the model is given to answer; RequestError if it cannot read it."""
    return _encoded(model, example, example.prompt, is_prompt=True)


def scored(model: LoadedModel, example: Example, asked: Encoded) -> Scored:
    """The prompt that was `asked` and the reference answer behind it, up to and with the token that ends it."""
    whole = _encoded(model, example, [*example.prompt, _message(example.reference)], is_prompt=False)
    start = len(asked.tokens)
    if whole.tokens[:start] != asked.tokens or len(whole.tokens) == start:
        raise RequestError(f"{example.place}: the chat template of {model.name} writes the prompt in another way when "
                           "an answer follows, so the answer's tokens cannot be told apart")
    end = next((at + 1 for at in range(start, len(whole.tokens)) if whole.tokens[at] in model.tokenizer.end_ids),
               len(whole.tokens))
    return Scored(replace(whole, tokens=whole.tokens[:end]), start)


def tool_names(example: Example) -> tuple[str, ...]:
    """The functions that the example offers."""
    return tuple(str(cast(Mapping[str, object], tool["function"])["name"]) for tool in example.tools)


def _encoded(model: LoadedModel, example: Example, messages: Sequence[Message], *, is_prompt: bool) -> Encoded:
    return encoded(require(model.chat), messages, example.tools, add_generation_prompt=is_prompt)


def _message(answer: Answer) -> Message:
    calls = [{"id": f"call_{number}", "type": "function",
              "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
             for number, call in enumerate(answer.calls)]
    return {"role": "assistant", "content": answer.text, **({"tool_calls": calls} if calls else {})}
