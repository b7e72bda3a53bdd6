"""An evaluation from its options to figures with intervals: it picks the answerer and the scorer, and reports."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brise import settings
from brise.engine.model import LoadedModel
from brise.errors import EvidenceError, RequestError
from brise.evals import answers_file, baseline, bfcl, classify, custom, data, report, scorers
from brise.evals.answering import Answered, Answerer, AnswerSettings, answer_all
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.evals.example import EvalAnswer, EvalExample
from brise.evals.local import LocalAnswerer, LocalModel, load_local
from brise.evals.options import EvalOptions
from brise.evals.report import Judged
from brise.watch import SILENT, Watcher


@dataclass(frozen=True)
class Evaluation:
    """An answer to each example, in order, and what was counted.

    `document` is what `brise eval --json` prints: its "figures" have an estimate and a 95 % interval by name, its
    "against" the same of another run (docs/guides/eval.md has all fields).
    """

    system: str
    examples: tuple[EvalExample, ...]
    answers: tuple[EvalAnswer, ...]
    document: Mapping[str, Any]

    @property
    def figures(self) -> Mapping[str, Any]:
        """By name: {"estimate", "low", "high", "interval"}; an interval's ends are None where there are too few rows.
        """
        figures: Mapping[str, Any] = self.document["figures"]
        return figures


def evaluate(options: EvalOptions, watcher: Watcher = SILENT, loaded: LoadedModel | None = None) -> Evaluation:
    """Asks for all answers and scores them. `loaded` is options.model, if it is in memory already."""
    local = None
    if options.model is not None:
        local = load_local(options.model, options.adapter, any_base=options.any_base, threads=options.threads,
                           watcher=watcher, loaded=loaded)
    vision = None if local is None else local.model.vision
    reading = options.reading(None if vision is None else vision.settings)
    read = bfcl.read(options.data) if options.format == "bfcl" else data.read(options.data, reading)
    examples = sample(read, options.sample)
    judged = _judged(options, examples)
    # References that the scorer cannot compare are found now, and not after an hour of asking.
    rehearsed = examples[:1] if options.scorer is not None else examples
    judged.scorer.measures(rehearsed, [example.reference for example in rehearsed])
    other = None if options.against is None else answers_file.read(options.against)
    answerer = _answerer(options, local, reading, examples, judged, watcher)
    answered = _answered(answerer, examples, options.out, watcher)
    document = report.document(answerer.name, examples, answered, judged)
    document["against"] = None if other is None else report.compared(examples, answered.answers, other, judged)
    return Evaluation(answerer.name, tuple(examples), answered.answers, document)


def sample(examples: Sequence[EvalExample], number: int | None) -> Sequence[EvalExample]:
    """`number` of them in their order; the lowest digests are as good as a draw, and the same in every run."""
    if number is None or number >= len(examples):
        return examples
    chosen = sorted(range(len(examples)), key=lambda at: (examples[at].digest, at))[:number]
    return [examples[at] for at in sorted(chosen)]


def _answerer(options: EvalOptions, local: LocalModel | None, reading: data.Reading, examples: Sequence[EvalExample],
              judged: Judged, watcher: Watcher) -> Answerer:
    asked = AnswerSettings(options.max_tokens, _schema(options.json_schema), judged.scorer.name == "perplexity",
                           options.absorb_system)
    if local is not None:
        return LocalAnswerer(local.model, asked, local.digest, parallel=options.parallel, context=options.context,
                             adapter=local.adapter)
    if options.endpoint is not None:
        assert options.name is not None
        key = None if options.key_env is None else settings.secret(options.key_env)
        return EndpointAnswerer(Endpoint(options.endpoint, options.name, key, options.timeout), asked,
                                parallel=options.parallel)
    return _baseline(options, reading, examples, judged, watcher)


def _answered(answerer: Answerer, examples: Sequence[EvalExample], out: Path | None, watcher: Watcher) -> Answered:
    try:
        with watcher.progress(f"asking {answerer.name}", len({example.digest for example in examples}),
                              "examples") as advance:
            return answer_all(answerer, examples, out, advance)
    except KeyboardInterrupt:
        watcher.note(f"stopped; {out} has the answers so far, and the same command goes on from there" if out else
                     "stopped; nothing is kept. With --out FILE the next run could go on from here")
        raise


def _baseline(options: EvalOptions, reading: data.Reading, examples: Sequence[EvalExample], judged: Judged,
              watcher: Watcher) -> Answerer:
    assert options.baseline is not None
    if judged.scorer.name == "perplexity":
        raise EvidenceError("a baseline has no perplexity: it gives answers, no probabilities")
    rows = data.read(options.train, data.Reading(reading.turns, reading.rules, reading.columns,
                                                 absorb_system=reading.absorb_system))
    train = baseline.without(rows, examples)
    if len(train) < len(rows):
        watcher.note(f"{len(rows) - len(train)} of {len(rows)} rows of --train are of conversations that are "
                     "evaluated, and are left out")
    return baseline.BaselineAnswerer(options.baseline, train, classifies=judged.scorer.name == "class")


def _judged(options: EvalOptions, examples: Sequence[EvalExample]) -> Judged:
    """The scorer that was asked for, or the one for these rows."""
    if options.scorer is not None:
        return Judged(custom.load(options.scorer), "--scorer", options.seed)
    name, why = (options.score, "--score") if options.score is not None else scorers.pick(examples)
    if options.labels is not None and name != "class":
        raise EvidenceError(f"--labels goes with --score class, here answers are scored by {name} ({why})")
    labels = classify.labels_of(examples) if options.labels is None else _labels(options.labels)
    return Judged(scorers.built_in(labels)[name], why, options.seed)


def _labels(path: Path) -> tuple[str, ...]:
    labels = json.loads(_json_text(path))
    if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
        raise EvidenceError(f"{str(path)!r} must be a JSON list of labels")
    return tuple(labels)


def _schema(path: Path | None) -> str | None:
    return None if path is None else _json_text(path)


def _json_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except OSError as error:
        raise RequestError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{str(path)!r} is no JSON: {error}") from None
    return text
