"""A conversation with one model: the messages so far, and answers that stream.

The messages are encoded anew for every answer. That is cheap: the engine's prefix cache still has the keys
and values of all that was said before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from brise.cli.chat_options import ChatOptions
from brise.engine.engine import Engine
from brise.engine.model import LoadedModel
from brise.engine.request import FinishReason, Request
from brise.errors import BriseError, ContextLengthError, UnsupportedError

Message = dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What was said, why it ended, and how fast it came."""

    text: str
    finish: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: float
    rest_s: float  # from the first token to the last

    @property
    def stats(self) -> str:
        rate = (self.completion_tokens - 1) / self.rest_s if self.completion_tokens > 1 else 0.0
        return (f"[{self.completion_tokens} tokens, {rate:.1f} tokens/s; "
                f"first token after {self.first_token_s:.2f} s; "
                f"prompt {self.prompt_tokens} tokens, {self.cached_tokens} cached]")


# A small model that has begun to repeat itself would go on until its context is full, minutes later.
DEFAULT_MAX_TOKENS = 1024


class Conversation:
    """Messages and the engine that answers them. The engine steps in the caller's thread."""

    def __init__(self, model: LoadedModel, engine: Engine, system: str | None) -> None:
        if model.chat is None:
            raise UnsupportedError(f"the model {model.name!r} has no chat template, it only completes text",
                                   hint="choose a model whose name says Instruct or Chat")
        self.model = model.name
        self.chat = model.chat
        self.engine = engine
        self.max_context = model.config.max_context
        self.system = system
        self.turns: list[Message] = []  # user and assistant by turns

    @property
    def messages(self) -> list[Message]:
        return ([{"role": "system", "content": self.system}] if self.system else []) + self.turns

    def ask(self, text: str, options: ChatOptions, write: Callable[[str], None],
            is_stopped: Callable[[], bool]) -> Answer:
        """Answers `text`, and `write`s the answer piece by piece until it ends or `is_stopped`.

        A refused question leaves no trace; an answer that was stopped stays, as far as it came.
        """
        question = {"role": "user", "content": text}
        tokens = self.chat.encode([*self.messages, question], add_generation_prompt=True)
        room = self.engine.max_context - len(tokens)
        max_tokens = options.max_tokens or (min(DEFAULT_MAX_TOKENS, room) if room > 0 else None)
        request = Request(prompt=tuple(tokens), max_tokens=max_tokens, sampling=options.sampling)
        try:
            request_id = self.engine.submit(request)
        except ContextLengthError as error:
            error.hint = self._how_to_fit(room)
            raise
        answer = self._stream(request_id, len(tokens), write, is_stopped)
        if answer.text:
            self.turns += [question, {"role": "assistant", "content": answer.text}]
        return answer

    def _how_to_fit(self, room: int) -> str:
        """What a person can do who asked for more than the context holds, `room` tokens beside the prompt."""
        ways = ["/clear forgets what was said"] if self.turns else []
        if room > 0:
            ways.append(f"--max-tokens N with N up to {room} fits")
        if not ways:
            ways.append("ask something shorter")
        if self.engine.max_context < self.max_context:
            ways.append(f"a longer context is set with --context N (this model: up to {self.max_context})")
        return "; ".join(ways)

    def take_back(self) -> str | None:
        """Forgets the last question and its answer, and returns the question."""
        if not self.turns:
            return None
        question = self.turns[-2]["content"]
        del self.turns[-2:]
        return question

    def _stream(self, request_id: str, prompt_tokens: int, write: Callable[[str], None],
                is_stopped: Callable[[], bool]) -> Answer:
        pieces: list[str] = []
        start_s = first_s = last_s = time.perf_counter()
        cached = completion = 0
        finish: FinishReason | None = None
        while self.engine.has_work:
            if is_stopped():
                self.engine.cancel(request_id)
            for delta in self.engine.step():
                last_s = time.perf_counter()
                first_s = first_s if completion else last_s
                cached = max(cached, delta.cached_tokens)
                completion = max(completion, delta.completion_tokens)
                pieces.append(delta.text)
                write(delta.text)
                finish = delta.finish or finish
                if delta.finish == "error":
                    raise BriseError(f"the answer broke off: {delta.error}")
        return Answer("".join(pieces), finish or "cancelled", prompt_tokens, cached, completion,
                      first_s - start_s, last_s - first_s)
