"""Rules about calls in the server: the answer's text asks for what they hold back, which runs once it is confirmed.

The rules (brise.robots.call_rules) see the calls of each answer and the `state` that the request reports. A call that
needs a person is no call of the answer: the text asks for it, with a number. A user's message that is `confirm NUMBER`
and nothing else is not put to the model: its answer is the call. The number is the server's, so neither the model nor a
tool's result can confirm anything, and it counts only if the person was shown the question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from brise.engine.answer_collector import AnswerCollector, CollectedCall
from brise.engine.request import Delta
from brise.errors import RequestError
from brise.robots.call_rules import CallRules, ConfirmationDesk, JudgedCall, State
from brise.serve.stored_responses import owner_of
from brise.text.answer_events import (
    CallParser,
    Parsed,
    ParsedCallArguments,
    ParsedCallStart,
    ParsedReasoning,
    ParsedText,
)
from brise.text.json_text import Json
from brise.text.openai_messages import Message, TextPart

if TYPE_CHECKING:
    from starlette.requests import Request

STATE = "state"
MAX_OWNERS = 1000  # clients with keys of their own whose calls wait
_CONFIRMS = re.compile(r"\s*confirm((?:[\s,]+\d{1,9})+)[\s.!]*", re.IGNORECASE)


@dataclass(frozen=True)
class WrittenCall:
    """A call as the rules read it."""

    name: str
    arguments_json: str


class CallDesks:
    """The calls of one server that wait: each client confirms its own. It belongs to the event loop."""

    def __init__(self, rules: CallRules) -> None:
        self._rules = rules
        self._desks: dict[str | None, ConfirmationDesk] = {}

    def guard(self, request: Request) -> CallGuard:
        """What holds back the calls of this request's answer."""
        owner = owner_of(request)
        if owner not in self._desks:
            if len(self._desks) >= MAX_OWNERS:
                del self._desks[next(iter(self._desks))]
            self._desks[owner] = ConfirmationDesk(self._rules)
        return CallGuard(self._desks[owner])


@dataclass
class CallGuard:
    """The rules, for one request: its state, and what its last message confirms."""

    desk: ConfirmationDesk
    state: State = field(default_factory=dict)
    released: tuple[JudgedCall, ...] = ()  # what the person has confirmed, to run or refused by now

    def read(self, body: Json) -> Json:
        """The body without `state`, which is kept."""
        if not isinstance(body, dict) or STATE not in body:
            return body
        state = body[STATE]
        if not isinstance(state, dict | None):
            raise RequestError("'state' must be an object: what the vehicle reports, by name", param=STATE)
        self.state = cast(State, state or {})
        return {name: value for name, value in body.items() if name != STATE}

    def confirm(self, messages: Sequence[Message], num_answers: int) -> None:
        """Takes what the last message confirms, if it confirms something; RequestError if nothing waits for that."""
        last = messages[-1]
        found = _CONFIRMS.fullmatch(_text(last)) if last.role == "user" else None
        if found is None:
            return
        if num_answers > 1:
            raise RequestError(f"'n' is {num_answers}; a confirmation has one answer", param="n")
        shown = [_text(message) for message in messages if message.role == "assistant"]
        numbers = dict.fromkeys(int(number) for number in re.findall(r"\d+", found[1]))
        for number in numbers:
            waiting = self.desk.waiting(number) or self.desk.confirm(number, self.state)  # raises: none waits
            if not any(question(number, waiting) in text for text in shown):
                raise RequestError(f"the conversation does not show the question of confirmation {number}",
                                   param="messages", hint="send the assistant's messages back as they were")
        self.released = tuple(self.desk.confirm(number, self.state) for number in numbers)

    def collector(self, parser: CallParser, new_call_id: Callable[[], str], *, may_call: bool) -> GuardedCollector:
        """Collects one answer; what was confirmed is all of it."""
        return GuardedCollector(self, parser, new_call_id, may_call=may_call)


class GuardedCollector(AnswerCollector):
    """An answer whose calls come at its end, as far as the rules let them run. Before them the text says what waits
    for a person and what is refused."""

    def __init__(self, guard: CallGuard, parser: CallParser, new_call_id: Callable[[], str], *, may_call: bool) -> None:
        super().__init__(parser, new_call_id, may_call=may_call)
        self._guard, self._new_id = guard, new_call_id
        self._written = AnswerCollector(parser, new_call_id, may_call=may_call)
        self.held: dict[int, JudgedCall] = {}
        self.refused: list[JudgedCall] = []

    def push(self, delta: Delta) -> Iterator[Parsed]:
        """Text and reasoning as they come, notices and calls with the last delta. Read all of them."""
        for piece in self._written.push(delta):
            match piece:
                case ParsedText(text):
                    self._texts.append(text)
                    yield piece
                case ParsedReasoning(text):
                    self._reasoning.append(text)
                    yield piece
        if delta.finish is not None:
            yield from self._decided()
            self.finish = "tool_calls" if self.calls and delta.finish != "length" else delta.finish

    def _decided(self) -> Iterator[Parsed]:
        run = [CollectedCall(self._new_id(), call.name, [json.dumps(dict(call.arguments), ensure_ascii=False)])
               for call in self._guard.released if call.decision == "run"]
        self.refused += [call for call in self._guard.released if call.decision == "refuse"]
        for call in self._written.calls:
            if not call.is_whole and self._written.finish == "length":
                continue  # the answer was cut within it
            decided = self._guard.desk.submit([WrittenCall(call.name, call.arguments)], self._guard.state)
            self.held |= decided.to_confirm
            self.refused += decided.refused
            if decided.run:
                run.append(call)
        notices = [*(question(number, call) for number, call in self.held.items()), *map(_refusal, self.refused)]
        for notice in notices:
            text = f"\n{notice}" if self._texts else notice
            self._texts.append(text)
            yield ParsedText(text)
        for call in run:
            self.calls.append(call)
            yield ParsedCallStart(call.name, call.id)
            yield ParsedCallArguments(call.arguments)


def read_state(guard: CallGuard | None, body: Json) -> Json:
    """The body without what belongs to the guard; without rules it is unchanged."""
    return body if guard is None else guard.read(body)


def question(number: int, call: JudgedCall) -> str:
    """What a person reads before a call runs, and how to let it run."""
    return f"{_named(call)} waits for you: {'; '.join(call.because)}. To let it run, answer: confirm {number}"


def held_back(answers: Sequence[AnswerCollector]) -> dict[str, object]:
    """What the rules held back in these answers, for the object under `brise`."""
    guarded = [answer for answer in answers if isinstance(answer, GuardedCollector)]
    held = [{"confirmation": number, **_shown(call)} for answer in guarded for number, call in answer.held.items()]
    refused = [_shown(call) for answer in guarded for call in answer.refused]
    return {**({"held": held} if held else {}), **({"refused": refused} if refused else {})}


def _refusal(call: JudgedCall) -> str:
    return f"{_named(call)} was refused: {'; '.join(call.because)}."


def _named(call: JudgedCall) -> str:
    return f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})"


def _shown(call: JudgedCall) -> dict[str, object]:
    return {"name": call.name, "arguments": dict(call.arguments), "because": list(call.because)}


def _text(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "".join(part.text for part in message.content if isinstance(part, TextPart))
