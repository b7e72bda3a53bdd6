"""What comes back: answers, their pieces while they grow, function calls, log-probabilities and scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Literal, TypeVar, cast

from brise.api.schemas import no_value, read_json
from brise.engine.answer_collector import AnswerCollector, CollectedCall
from brise.engine.request import Delta, TokenLogprob
from brise.errors import AnswerError, BriseError, ClosedError
from brise.serve.unenforced import AnswerPlaces, Unenforced, invalid_places, not_enforced
from brise.text.answer_events import ParsedCallStart, ParsedReasoning, ParsedText
from brise.text.json_text import Json

T_co = TypeVar("T_co", covariant=True)
Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of the prompt, of these taken from the prefix cache, and of the answer."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants called; `arguments_json` is what it wrote."""

    id: str
    name: str
    arguments_json: str

    @cached_property
    def arguments(self) -> dict[str, Json]:
        """The arguments by name; AnswerError if the answer was cut within them."""
        try:
            value = read_json(self.arguments_json)
        except AnswerError as error:
            raise AnswerError(f"the arguments of the call of {self.name!r} are not whole: {error.args[0]}",
                              hint="allow a longer answer: max_tokens=") from None
        if not isinstance(value, dict):
            raise AnswerError(f"the arguments of the call of {self.name!r} are not a JSON object")
        return value

    def result(self, content: str) -> dict[str, object]:
        """The message that tells the model what the function returned."""
        return {"role": "tool", "tool_call_id": self.id, "content": content}


@dataclass(frozen=True)
class Piece:
    """What a stream brings at one time: text of the answer, or of the reasoning before it, or a whole call."""

    text: str = ""
    reasoning: str = ""
    call: ToolCall | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Answer(Generic[T_co]):
    """A whole answer. `str(answer)` is its text.

    `finish` is "stop" at the model's own end or at a stop string (`stop`), "length" if `max_tokens` or the context cut
    it, "tool_calls" if it ends in calls that are whole. `logprobs` are of every token, in nats, if they were asked for.
    `not_enforced` are the keywords of the schemas that could not be enforced ("schema.properties.n.uniqueItems"), and
    `invalid` the places in the answer that break them ("text: n: uniqueItems", "calls[0].arguments: ..."); one that was
    cut is not checked.
    """

    text: str
    finish: Finish
    usage: TokenUsage
    read: Callable[[str], T_co] = field(repr=False, compare=False)  # what makes `value` of the text
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    stop: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    not_enforced: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()

    @cached_property
    def value(self) -> T_co:
        """What the schema describes: an instance of the class that was given, or JSON values; None without a schema.

        AnswerError if the answer was cut before its JSON was whole, or if it calls functions instead. What the class
        itself refuses is raised as it is.
        """
        if self.calls and not self.text:
            return self._without_text()
        try:
            return self.read(self.text)
        except (AnswerError, ValueError) as error:
            if self.finish != "length":
                raise
            raise AnswerError(f"the answer was cut after {self.usage.completion_tokens} tokens, before its JSON was "
                              "whole", hint="allow a longer answer: max_tokens=") from error

    def _without_text(self) -> T_co:
        if self.read is no_value:
            return self.read(self.text)
        names = ", ".join(repr(call.name) for call in self.calls)
        raise AnswerError(f"the answer calls {names} and has no text that a schema could describe",
                          hint="look at answer.calls first, and send their results back")

    @property
    def message(self) -> dict[str, object]:
        """The answer as a message, to go on with the conversation."""
        message: dict[str, object] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [{"id": call.id, "type": "function", "function": {
                "name": call.name, "arguments": call.arguments_json}} for call in self.calls]
        return message

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Score:
    """How likely a text is: its tokens with their log-probabilities, in nats.

    The first token is left out if nothing comes before it.
    """

    tokens: tuple[TokenLogprob, ...]

    @property
    def total(self) -> float:
        """The log-probability of the text, in nats."""
        return math.fsum(token.logprob for token in self.tokens)

    @property
    def mean(self) -> float:
        """Nats a token; nan for a text of which no token could be scored."""
        return self.total / len(self.tokens) if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean)."""
        return math.exp(-self.mean)


@dataclass(frozen=True)
class BatchResult(Generic[T_co]):
    """One prompt's outcome: an answer, or the error that it ended in. `index` counts the prompts from 0."""

    index: int
    error: BriseError | None = None
    given: Answer[T_co] | None = field(default=None, repr=False)

    @property
    def answer(self) -> Answer[T_co]:
        """The answer; raises the prompt's own error if there is none."""
        if self.given is None:
            raise self.error or AnswerError("there is no answer")
        return self.given

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.given is not None


class Growing(Generic[T_co]):
    """An answer that grows: deltas of the engine go in, pieces and the whole answer come out."""

    def __init__(self, model: str, collector: AnswerCollector, read: Callable[[str], T_co],
                 unenforced: Sequence[Unenforced] = ()) -> None:
        self._model, self._collector, self._read, self._unenforced = model, collector, read, unenforced
        self._logprobs: list[TokenLogprob] = []
        self._last: Delta | None = None
        self._usage = TokenUsage(0, 0, 0)

    @property
    def is_done(self) -> bool:
        return self._last is not None and self._last.finish is not None

    def push(self, delta: Delta) -> list[Piece]:
        """The pieces that this delta brings. AnswerError if the engine failed, ClosedError if the model was closed."""
        match delta.finish:
            case "error":
                raise AnswerError(f"the answer broke off: {delta.error}")
            case "cancelled" | "preempted":
                raise ClosedError(f"the model {self._model!r}")
        self._last = delta
        self._logprobs += delta.logprobs
        self._usage = TokenUsage(max(self._usage.prompt_tokens, delta.prompt_tokens),
                            max(self._usage.cached_tokens, delta.cached_tokens),
                            max(self._usage.completion_tokens, delta.completion_tokens))
        return list(self._pieces(delta))

    def answer(self) -> Answer[T_co]:
        """The whole; only after the last delta."""
        collector, last = self._collector, self._last
        if last is None or last.finish is None:
            raise AnswerError("the answer is not complete: the stream has not been read to its end")
        places = AnswerPlaces("text", [f"calls[{number}].arguments" for number in range(len(collector.calls))])
        return Answer(collector.text, cast(Finish, collector.finish), self._usage, self._read, collector.reasoning,
                      tuple(map(_call, collector.calls)), last.stop_string, tuple(self._logprobs),
                      tuple(not_enforced(self._unenforced)),
                      tuple(invalid_places(collector, self._unenforced, places)))

    def _pieces(self, delta: Delta) -> Iterator[Piece]:
        """Calls come when they are whole: when the next one begins, or the answer ends."""
        calls = self._collector.calls
        for item in self._collector.push(delta):
            match item:
                case ParsedText(text):
                    yield Piece(text)
                case ParsedReasoning(text):
                    yield Piece(reasoning=text)
                case ParsedCallStart() if len(calls) > 1:
                    yield Piece(call=_call(calls[-2]))
        if delta.finish is not None and calls:
            yield Piece(call=_call(calls[-1]))


def _call(call: CollectedCall) -> ToolCall:
    return ToolCall(call.id, call.name, call.arguments)
