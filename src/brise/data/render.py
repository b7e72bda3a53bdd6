"""Rendering an example: exactly the tokens that the model reads and writes when it is served, and which it learns.

For every assistant message the prompt is encoded as the server does it, and then the conversation with the answer.
The tokens that the answer adds, up to the one that ends the turn, are learned; whatever the template writes after that
token is never generated, so it is not learned. Turns share one row as long as each prompt begins with everything before
it. Templates that rewrite the history (dropping older reasoning, moving tools to the last question) make one row of
each turn, since each is another prompt to the server too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal, cast

import numpy as np

from brise.data.example import EncodedRow, TrainingExample
from brise.errors import RequestError
from brise.text.chat import require
from brise.text.conversation import encoded
from brise.text.inputs import ImageInput
from brise.text.load import Tokens
from brise.text.protocols import Message, TextTokenizer

Targets = Literal["assistant", "all"]
ACTIONS = "actions"  # field of an assistant message: the tokens of its answer, which no token ends
UNLEARNED = "weight"  # field of an assistant message: 0 if it is not learned, as in OpenAI's training files


def rows_of(example: TrainingExample, tokens: Tokens, *, targets: Targets = "assistant",
            as_text: bool = False) -> tuple[EncodedRow, ...]:
    """The rows of an example; RequestError says why it cannot be trained on.

    As text, the completion follows its prompt as in /v1/completions, without a chat format.
    """
    sequences = [_as_text(example, tokens.tokenizer)] if as_text else list(_joined(_turns(example, tokens)))
    return tuple(_row(sequence, example.place, targets) for sequence in sequences)


def prompt_of(example: TrainingExample, tokens: Tokens) -> tuple[int, ...]:
    """The tokens of the last request of a conversation, as the server would read it."""
    last = max(index for index, message in enumerate(example.messages) if message["role"] == "assistant")
    return encoded(require(tokens.chat), _plain(example.messages[:last]), example.tools).tokens


@dataclass(frozen=True)
class _Turn:
    prompt: tuple[int, ...]
    answer: tuple[int, ...]  # with the token that ends it
    images: tuple[ImageInput, ...]


@dataclass(frozen=True)
class _Sequence:
    """Tokens, and the ranges of the learned answers."""

    tokens: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]
    images: tuple[ImageInput, ...] = ()


def _turns(example: TrainingExample, tokens: Tokens) -> Iterator[_Turn]:
    chat, messages = require(tokens.chat), _plain(example.messages)
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant" or message.get(UNLEARNED) == 0 or index == 0:
            continue
        prompt = encoded(chat, messages[:index], example.tools)
        if (actions := message.get(ACTIONS)) is not None:
            yield _Turn(prompt.tokens, cast(tuple[int, ...], actions), prompt.images)
            continue
        whole = encoded(chat, messages[:index + 1], example.tools, add_generation_prompt=False)
        added = _added(prompt.tokens, whole.tokens, tokens.tokenizer)
        yield _Turn(prompt.tokens, _to_its_end(added, tokens.tokenizer), whole.images)


def _plain(messages: Sequence[Message]) -> list[Message]:
    return [{key: value for key, value in message.items() if key not in (ACTIONS, UNLEARNED)}
            if ACTIONS in message or UNLEARNED in message else message for message in messages]


def _joined(turns: Iterator[_Turn]) -> Iterator[_Sequence]:
    """Joins turns into one sequence while each prompt continues the sequence before it."""
    current: _Sequence | None = None
    for turn in turns:
        before: tuple[tuple[int, int], ...] = ()
        if current is not None:
            if turn.prompt[:len(current.tokens)] == current.tokens:
                before = current.answers
            else:
                yield current
        tokens = turn.prompt + turn.answer
        current = _Sequence(tokens, (*before, (len(turn.prompt), len(tokens))), turn.images)
    if current is None:
        raise RequestError("there is no answer to learn after another message", param="messages")
    yield current


def _added(prompt: tuple[int, ...], whole: tuple[int, ...], tokenizer: TextTokenizer) -> tuple[int, ...]:
    """The tokens that the answer adds to the prompt.

    Where the first characters of the answer merge into one token with the last ones of the prompt (two line breaks),
    the answer is encoded by itself: the server has encoded the prompt before there is an answer.
    """
    if whole[:len(prompt)] == prompt:
        return whole[len(prompt):]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)))
    run = list(takewhile(lambda token: not tokenizer.is_control(token), whole[same:]))
    asked = b"".join(tokenizer.token_bytes(token) for token in prompt[same:])
    written = b"".join(map(tokenizer.token_bytes, run))
    if any(map(tokenizer.is_control, prompt[same:])) or not written.startswith(asked):
        raise RequestError("the model's chat format writes this answer otherwise than it asks for it: the prompt is "
                           "not the beginning of the finished conversation", param="messages",
                           code="chat_template_error")
    rest = tokenizer.encode(written[len(asked):].decode(errors="replace"), before="text")
    return (*rest, *whole[same + len(run):])


def _to_its_end(added: tuple[int, ...], tokenizer: TextTokenizer) -> tuple[int, ...]:
    """The answer up to the token at which the engine stops; the end-of-text token where the template writes none."""
    ends = [at for at, token in enumerate(added) if token in tokenizer.end_ids]
    if len(ends) > 1:
        raise RequestError("the model's chat format ends this answer twice", param="messages",
                           code="chat_template_error", hint="give what is said and what is called as two messages")
    return added[:ends[0] + 1] if ends else (*added, _end_of_text(tokenizer))


def _end_of_text(tokenizer: TextTokenizer) -> int:
    if tokenizer.eos_id is None:
        raise RequestError("the model has no token that ends a text", param="messages", code="chat_template_error")
    return tokenizer.eos_id


def _as_text(example: TrainingExample, tokenizer: TextTokenizer) -> _Sequence:
    prompt, completion = (str(message["content"]) for message in example.messages)
    bos = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    before = [*bos, *tokenizer.encode(prompt)]
    tokens = (*before, *tokenizer.encode(completion, before="text"), _end_of_text(tokenizer))
    return _Sequence(tokens, ((len(before), len(tokens)),))


def _row(sequence: _Sequence, place: str, targets: Targets) -> EncodedRow:
    tokens_T = np.array(sequence.tokens, np.int32)
    is_target_T = np.zeros(len(tokens_T), bool)
    for start, stop in sequence.answers:
        is_target_T[start:stop] = True
    if targets == "all":
        of_images = sorted({token for image in sequence.images for token in image.tokens})
        is_target_T |= ~np.isin(tokens_T, of_images)
    is_target_T[0] = False  # nothing precedes it
    return EncodedRow(tokens_T, is_target_T, place, sequence.images)
