"""The gate prompts of a bundle, asked when it is shipped: the way that a device's server asks its engine, without HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brise.data.parse_row import RowRules
from brise.dialects.table import CHAT
from brise.engine.adapter_loading import rank_in
from brise.engine.engine_thread import EngineThread
from brise.errors import CheckpointError, FleetError
from brise.evals import data
from brise.files.digests import Located
from brise.files.json_file import parse_json
from brise.fleet.gate_prompts import MOST_TOP, GateChoice, GatePrompt, GateToken, gate_body
from brise.fleet.strict_json import canonical
from brise.memory.opening import AdapterRoom, EngineOptions, open_engine
from brise.serve.engine_models import EngineModels
from brise.text.chat import require
from brise.text.conversation import encoded

BASE, TRAINED, SHIPPED = "base", "trained", "shipped"  # what they are called in the engine
_MOST_ROWS_BYTES = 256 << 20


@dataclass(frozen=True)
class GateQuestion:
    """A gate prompt that has no answer yet: what is said, and the functions that may be called."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether all of it is text, which a manifest can hold."""
        return bool(self.messages) and all(
            isinstance(one.get("content"), str) or one.get("tool_calls") for one in self.messages)


@dataclass(frozen=True)
class Asked:
    """The engine of the base with its adapters, by names, and what identifies each."""

    worker: EngineThread
    models: EngineModels

    def fingerprint(self, name: str) -> str:
        """What a server reports that serves this."""
        return self.models.fingerprint(name)

    def answers(self, name: str, questions: Sequence[GateQuestion], max_tokens: int) -> tuple[GatePrompt, ...]:
        """The greedy answers, with their log-probabilities. An answer's numbers do not depend on its company."""
        async def all_of_them() -> list[GatePrompt]:
            return await asyncio.gather(*(self._answer(name, each, max_tokens) for each in questions))

        return tuple(asyncio.run(all_of_them()))

    def tokens(self, prompt: GatePrompt) -> list[int]:
        """The prompt and its answer in tokens."""
        chat, tokenizer = require(self.worker.model.chat), self.worker.model.tokenizer
        answer = b"".join(bytes.fromhex(token.text) for token in prompt.tokens).decode(errors="replace")
        return [*encoded(chat, prompt.messages, prompt.tools).tokens, *tokenizer.encode(answer)]

    async def _answer(self, name: str, question: GateQuestion, max_tokens: int) -> GatePrompt:
        answer = await self.models.answer(name, CHAT, gate_body(question.messages, question.tools, max_tokens))
        content = (answer.body["choices"][0].get("logprobs") or {}).get("content") or ()
        if not content:
            raise FleetError("the model says nothing to the gate prompt "
                             f"{str(question.messages[-1].get('content'))[:80]!r}",
                             hint="leave it out: a device could not tell whether it answers as it should")
        return GatePrompt(question.messages, max_tokens, tuple(map(_token, content)), question.tools)


@contextmanager
def asked(located: Located, options: EngineOptions, adapters: Mapping[str, Path]) -> Iterator[Asked]:
    """An engine with these adapters, as a server opens it."""
    room = AdapterRoom(max(len(adapters), 1), max(map(rank_in, adapters.values()), default=1))
    engine = open_engine(located, EngineOptions(
        context=options.context, parallel=options.parallel, cache=options.cache, weights=options.weights,
        threads=options.threads, adapters=tuple(adapters.items()), any_base=options.any_base, adapter_room=room))
    worker = EngineThread(engine)
    worker.start()
    try:
        yield Asked(worker, EngineModels({BASE: worker}))
    finally:
        worker.shutdown(drain=False)


def read_prompts(path: Path, number: int, held_out: float | None) -> tuple[GateQuestion, ...]:
    """`number` prompts of a file, evenly spread: chats (and their tools) that end with what the user says, or data as
    for `brise tune`, of which with `held_out` only those that tuning with this share holds out."""
    found = _plain_prompts(path) if held_out is None else None
    if found is None:
        rows = data.read([path], data.Reading(rules=RowRules(), held_out_share=held_out))
        found = [_question(row.prompt, row.tools) for row in rows]
    texts = [question for question in found if question.is_text]
    if not texts:
        raise FleetError(f"{str(path)!r} has no prompt of text alone to gate with",
                         hint='a line is {"messages": [{"role": "user", "content": ...}]}, or a row of brise tune')
    step = max(len(texts) / number, 1.0)
    return tuple(texts[int(at * step)] for at in range(min(number, len(texts))))


def _plain_prompts(path: Path) -> list[GateQuestion] | None:
    """The prompts of a file of which each line ends with what the user says; None if it is of another kind."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_ROWS_BYTES + 1)
    except OSError as error:
        raise FleetError(f"cannot read the gate prompts {str(path)!r}: {error.strerror}") from None
    if len(content) > _MOST_ROWS_BYTES:
        raise FleetError(f"{str(path)!r} has more than {_MOST_ROWS_BYTES} bytes")
    found: list[GateQuestion] = []
    for line in filter(bytes.strip, content.splitlines()):
        try:
            row = parse_json(line, path.name)
        except CheckpointError:
            return None
        messages, tools = row.get("messages"), row.get("tools") or []
        if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
            return None
        if messages[-1].get("role") != "user" or not isinstance(tools, list):
            return None
        found.append(_question(messages, tools))
    return found


def _question(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> GateQuestion:
    """The prompt with its keys in the order in which the bundle has them: templates write functions out as they come.
    """
    try:
        ordered = json.loads(canonical([list(messages), list(tools)]))
    except TypeError:  # an image
        return GateQuestion(())
    return GateQuestion(tuple(ordered[0]), tuple(ordered[1]))


def _token(entry: Mapping[str, Any]) -> GateToken:
    own = _choice(entry)
    top = tuple(map(_choice, entry["top_logprobs"]))
    is_there = own.text in [one.text for one in top]
    return GateToken(own.text, own.logprob, top if is_there else (*top[:MOST_TOP - 1], own))


def _choice(entry: Mapping[str, Any]) -> GateChoice:
    spelled = entry["bytes"]  # None: a special token, which has a name only
    text = str(entry["token"]).encode() if spelled is None else bytes(spelled)
    return GateChoice(text.hex(), min(float(entry["logprob"]), 0.0))
