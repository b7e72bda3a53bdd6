"""Measures speculation on answers of a task: of each source of drafts how many of its tokens are right, and how much
sooner answers are written.

The same answers are written without drafts and with each source, one answer after the other, in turns: what disturbs
the machine disturbs all of them alike. Time counts from the step that gives an answer's first token, so that reading
the prompt does not blur it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from brise import settings
from brise.data.count_ngrams import CountedRow, count_ngrams
from brise.data.example import TrainingExample
from brise.data.ngrams import FILE, read_table, table_in, tokenizer_digest
from brise.data.parse_row import RowRules
from brise.data.read_rows import read_rows
from brise.data.render import rows_of
from brise.engine.adapter_loading import rank_in
from brise.engine.drafts import DraftSource
from brise.engine.engine import Engine, EngineSettings
from brise.engine.lookup import PromptLookup
from brise.engine.model import LoadedModel, load
from brise.engine.request import Request, Sampling
from brise.engine.speculation import GRAMMAR, MOST_DRAFTED
from brise.errors import BriseError, EvidenceError
from brise.hub.locate import find_model
from brise.models.batch import PAGE_SIZE, Batch
from brise.models.ops import Cache, Runner
from brise.models.weights import Array
from brise.text.inputs import Grammar
from brise.text.load import Tokens

OFF, TOGETHER = "off", "together"
WARM_UP = 4  # answers from which acceptance and times of steps are learned, as a server has them
_ADAPTER = "adapter"
_SURE = np.float32(1e4)  # added to the logit of a token that shall be the answer's next


@dataclass(frozen=True)
class SpeculationOptions:
    """Which answers are written. `answers`: those in the file, whatever the model would say, or the model's own.

    `adapter` is the folder of one, with its table of n-grams if it has one; `learn` are rows to make that table of
    instead. With `schema`, a JSON schema, the model's own answers follow it, and have at most `max_tokens`.
    """

    model: str
    rows: Path
    count: int = 40
    answers: str = "file"
    adapter: Path | None = None
    learn: Path | None = None
    schema: str | None = None
    max_tokens: int = 256
    threads: int | None = None
    device: str = "cpu"
    each: bool = True  # also each source alone, besides all of them together


@dataclass
class SourceSpeed:
    """Answers written with one source of drafts: tokens after the first step, its steps and their seconds."""

    source: str
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def acceptance(self) -> float | None:
        """Of the drafted tokens, the share that was kept; None if nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None


@dataclass(frozen=True)
class SpeculationSpeedReport:
    """The speeds by source, `off` first, and all sources together last."""

    model: str
    rows: str
    answers: int
    speeds: Sequence[SourceSpeed]

    def gain(self, speed: SourceSpeed) -> float:
        """How many times as many tokens a second as without drafts."""
        without = self.speeds[0].tokens_per_s
        return speed.tokens_per_s / without if without else 0.0

    def document(self) -> dict[str, object]:
        """The report as JSON."""
        return {"model": self.model, "rows": self.rows, "answers": self.answers, "sources": {speed.source: {
            "tokens_per_s": round(speed.tokens_per_s, 2), "gain": round(self.gain(speed), 3),
            "tokens_per_step": round(speed.tokens_per_step, 3), "drafted": speed.drafted,
            "accepted": speed.accepted} for speed in self.speeds}}


@dataclass(frozen=True)
class _Answer:
    """A prompt, and the tokens that shall be answered; none: the model's own."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass
class _ForcedRunner:
    """A model whose answer is known: the step is computed, and then the known token is the likeliest."""

    runner: Runner
    tokens: list[int] = field(default_factory=list)  # prompt and answer; empty: as the model says

    def logits(self, batch: Batch, cache: Cache) -> Array:
        logits_RV = self.runner.logits(batch, cache)
        if not self.tokens:
            return logits_RV
        logits_RV = logits_RV if logits_RV.flags.writeable else logits_RV.copy()
        following = np.minimum(batch.positions[batch.rows] + 1, len(self.tokens) - 1)
        logits_RV[np.arange(len(logits_RV)), np.array(self.tokens)[following]] += _SURE
        return logits_RV

    def hidden(self, batch: Batch, cache: Cache) -> Array:
        return self.runner.hidden(batch, cache)

    def cancel(self) -> None:
        self.runner.cancel()


class _MeasuredEngine(Engine):
    """An engine that writes one answer at a time and measures it."""

    def __init__(self, model: LoadedModel, settings_: EngineSettings, source: str) -> None:
        super().__init__(model, settings_)
        self.speed = SourceSpeed(source)
        self._forced = self._runner = _ForcedRunner(self._runner)

    def write(self, answer: _Answer, request: Request) -> tuple[int, ...]:
        """The tokens of the answer."""
        self._forced.tokens = [*answer.prompt, *answer.tokens] if answer.tokens else []
        self.submit(request)
        tokens: list[int] = []
        start, first, steps = 0.0, 0, 0
        while self.has_work:
            deltas = self.step()
            for delta in deltas:
                if delta.finish == "error":
                    raise BriseError(f"the engine failed: {delta.error}")
                tokens += delta.tokens
            if not first and tokens:
                start, first, steps = time.perf_counter(), len(tokens), self.stats().steps
        self.speed.seconds += time.perf_counter() - start
        self.speed.tokens += len(tokens) - first
        self.speed.steps += self.stats().steps - steps
        return tuple(tokens)

    def finish(self) -> SourceSpeed:
        """The speed, with what was drafted."""
        counts = self.stats().drafts.values()
        self.speed.drafted, self.speed.accepted = sum(c.drafted for c in counts), sum(c.accepted for c in counts)
        return self.speed

    def forget_warm_up(self) -> None:
        """Begins to count, with what has been learned."""
        self.speed = SourceSpeed(self.speed.source)
        self.speculation.counts.clear()


def measure_speculation(options: SpeculationOptions,
                        note: Callable[[str], None] = lambda text: None) -> SpeculationSpeedReport:
    """Loads the model and writes the answers; `note` is called with what is done."""
    located = find_model(options.model, settings.read())
    note(f"loading {located.name} from {located.path}")
    model = load(located.path, threads=options.threads or settings.read().threads, name=located.name,
                 digest=located.digest, device=options.device)
    answers = _answers(options, model)
    table = _table(options, model)
    engines = list(_engines(options, model, answers, table))
    for number, answer in enumerate(answers):
        if number == min(WARM_UP, len(answers) - 1):
            note(f"writing {len(answers) - number} answers with {', '.join(one.speed.source for one in engines)}")
            for engine in engines:
                engine.forget_warm_up()
        request = _request(options, answer)
        first = number % len(engines)  # nobody is always behind the same one
        written = {engine.write(answer, request) for engine in engines[first:] + engines[:first]}
        assert len(written) == 1, "drafts changed an answer"
    return SpeculationSpeedReport(located.name, str(options.rows), len(answers) - min(WARM_UP, len(answers) - 1),
                                  [engine.finish() for engine in engines])


def _request(options: SpeculationOptions, answer: _Answer) -> Request:
    return Request(answer.prompt, len(answer.tokens) or options.max_tokens, Sampling(temperature=0),
                   ignore_eos=bool(answer.tokens), begins_text=True,
                   grammar=None if options.schema is None else Grammar("json_schema", options.schema),
                   adapter=None if options.adapter is None else _ADAPTER)


def _engines(options: SpeculationOptions, model: LoadedModel, answers: Sequence[_Answer],
             table: DraftSource | None) -> Sequence[_MeasuredEngine]:
    """One without drafts, one for each source, and one with all of them."""
    longest = max(len(answer.prompt) + max(len(answer.tokens), 0 if answer.tokens else options.max_tokens)
                  for answer in answers)
    context = min(longest, model.config.max_context)
    rank = 0 if options.adapter is None else rank_in(options.adapter)
    plain = EngineSettings(max_context=context, num_pages=2 * -(-context // PAGE_SIZE), max_sequences=1,
                           max_adapters=int(rank > 0), max_rank=rank)
    sources = [PromptLookup.name, *([] if table is None else [table.name]),
               *([] if options.schema is None else [GRAMMAR])]
    engines: list[_MeasuredEngine] = []
    for name in (OFF, *(sources if options.each else ()), TOGETHER):
        engine = _MeasuredEngine(model, replace(plain, max_draft=0 if name == OFF else MOST_DRAFTED), name)
        engine.speculation.only = frozenset(sources if name == TOGETHER else (name,))
        if options.adapter is not None and engine.adapters is not None:
            engine.adapters.add(_ADAPTER, options.adapter)
        if table is not None:
            engine.drafts.put(None if options.adapter is None else _ADAPTER, table)
        engines.append(engine)
    return engines


def _answers(options: SpeculationOptions, model: LoadedModel) -> list[_Answer]:
    """The last turn of each row, as many as are wanted."""
    examples = _examples(options.rows)[:WARM_UP + options.count]
    answers: list[_Answer] = []
    for example in examples:
        row = rows_of(example, _tokens(model))[-1]
        first = len(row.tokens) - int(np.argmin(row.is_target[::-1])) if row.is_target[-1] else len(row.tokens)
        tokens = row.tokens.tolist()
        if first < len(tokens) and len(tokens) <= model.config.max_context:
            written = tuple(tokens[first:]) if options.answers == "file" and options.schema is None else ()
            answers.append(_Answer(tuple(tokens[:first]), written))
    if len(answers) < 2:
        raise EvidenceError(f"{options.rows} has {len(answers)} answers that fit into the model's context; "
                            "at least 2 are needed")
    return answers


def _table(options: SpeculationOptions, model: LoadedModel) -> DraftSource | None:
    """The table of n-grams of the adapter, or one of the rows to learn from, as `brise tune` makes it."""
    if options.learn is not None:
        rows = (CountedRow(row, example.conversation) for example in _examples(options.learn)
                for row in rows_of(example, _tokens(model)))
        return table_in(memoryview(count_ngrams(rows, model.tokenizer, "rows")))
    if options.adapter is None or not (options.adapter / FILE).is_file():
        return None
    return read_table(options.adapter / FILE, tokenizer_digest(model.tokenizer))


def _examples(path: Path) -> list[TrainingExample]:
    return read_rows([path], RowRules()).examples


def _tokens(model: LoadedModel) -> Tokens:
    return Tokens(model.tokenizer, model.chat)
