"""Labels with a guarantee, and a person for the rest: a linear model, then a small model, then somebody who looks.

Rows that no tier has learned from are split by conversation. The earlier third fits how often each tier is right at its
confidence, chooses who answers (the linear model, the small one, or one after the other), and fixes the thresholds to
try; the later rows certify one of them (stats/thresholds.py), for what was chosen or for the linear model alone. The
claim is about all labels that are kept, whichever tier they came from: of these at most `risk` are wrong, with
probability 1 - delta.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from brise.errors import EvidenceError, OutputError
from brise.evals import baseline, data
from brise.evals.answering import AnswerSettings, answer_all
from brise.evals.example import EvalAnswer, EvalExample
from brise.evals.local import LocalAnswerer, load_local
from brise.files.atomic import staged_file
from brise.files.digests import text_digest
from brise.stats import logistic, thresholds
from brise.stats.clusters import MIN_CLUSTERS, Floats
from brise.stats.intervals import Interval, binomial_interval
from brise.stats.thresholds import RiskClaim, Threshold
from brise.watch import SILENT, Watcher

FILE, ROWS, VERSION = "triage.json", "train.jsonl", 1
FITTED = 1 / 3  # of conversations, as of a cascade (calibrate.py)
WORTH = 0.01  # of all rows that the small model must add to what is kept, or it is left out
MAX_FILE_BYTES = 4 << 20

Answers = Literal["linear", "small", "cascade"]


@dataclass(frozen=True)
class SmallTier:
    """The small model of a triage: a name in the store, and its adapter."""

    model: str
    adapter: Path | None = None
    threads: int | None = None
    max_tokens: int = 16  # of a label


@dataclass(frozen=True)
class TriageOptions:
    """The defaults are those of `brise triage fit`. `train` are labelled rows that tiers learned from; `calibrate` are
    others, and so are those of `test`, which are only counted. `out` is the folder that `sort` takes.
    """

    train: tuple[Path, ...]
    calibrate: tuple[Path, ...]
    out: Path
    test: tuple[Path, ...] = ()
    small: SmallTier | None = None
    claim: RiskClaim = RiskClaim()


@dataclass(frozen=True)
class ChanceCurve:
    """How likely a tier's label is right at a confidence: a logistic curve."""

    bias: float
    weight: float
    mean: float
    scale: float

    def chances(self, confidences: Floats) -> Floats:
        """Between 0 and 1; 0 where there is no label (minus infinity)."""
        odds = self.bias + self.weight * (np.where(np.isfinite(confidences), confidences, 0) - self.mean) / self.scale
        found: Floats = np.where(np.isfinite(confidences), 1 / (1 + np.exp(-np.clip(odds, -500, 500))), 0.0)
        return found


@dataclass(frozen=True)
class TierFigures:
    """How one way to answer does on some rows: shares with intervals of Clopper and Pearson at 95 %."""

    name: str
    rows: int
    accuracy: Interval  # of all its labels
    kept: Interval | None = None  # share of rows that need no person; None: nothing is certified
    error: Interval | None = None  # of what is kept; None also if nothing is
    by_tier: Mapping[str, int] | None = None  # kept labels


@dataclass(frozen=True)
class Triage:
    """What was fitted: who answers, from which chance on a label is kept, and on what that rests.

    `threshold` is None if no threshold could be certified: then a person sees everything. Rows whose linear chance is
    at least `cut` are the linear model's, the others the small model's.
    """

    answers: Answers
    cut: float
    curves: Mapping[str, ChanceCurve]
    threshold: float | None
    claim: RiskClaim
    method: str
    bound: float
    labels: tuple[str, ...]
    units: int  # rows that certified it
    train_digest: str
    sklearn: str
    small: SmallTier | None
    figures: tuple[TierFigures, ...] = ()  # of the rows that certified
    test: tuple[TierFigures, ...] = ()  # of rows that were only counted


@dataclass(frozen=True)
class SortedRow:
    """A row's label, whose it is, and how likely it is right. `person`: the label is only a suggestion."""

    place: str
    by: Literal["linear", "small", "person"]
    label: str
    chance: float


@dataclass(frozen=True)
class _Tier:
    """The labels of one tier, and its confidences; minus infinity where it gave none of the labels."""

    labels: Sequence[str]
    confidences: Floats

    def wrong(self, examples: Sequence[EvalExample]) -> Floats:
        return np.array([label != example.reference.text.strip()
                         for label, example in zip(self.labels, examples, strict=True)], np.float64)

    def of(self, rows: Sequence[int]) -> _Tier:
        return _Tier([self.labels[at] for at in rows], self.confidences[rows])


def fit(options: TriageOptions, watcher: Watcher = SILENT) -> Triage:
    """Fits and certifies; writes the folder. EvidenceError if there are under 90 conversations to calibrate with."""
    if (options.out / FILE).exists():
        raise OutputError(f"{str(options.out)!r} holds a triage already", hint="give another --out FOLDER")
    rows, held = data.read(options.train), data.read(options.calibrate)
    test = data.read(options.test) if options.test else ()
    train = baseline.without(rows, (*held, *test))
    labels = tuple(sorted({example.reference.text.strip() for example in train}))
    tiers = _tiers(train, (*held, *test), labels, options.small, watcher)
    number = len(held)
    here = {name: tier.of(range(number)) for name, tier in tiers.items()}
    earlier, later = _split(held)
    curves = {name: _curve(tier.of(earlier), [held[at] for at in earlier]) for name, tier in here.items()}
    answers, cut = _chosen({name: tier.of(earlier) for name, tier in here.items()}, curves,
                           [held[at] for at in earlier], options.claim)
    answers, cut, found, method = _certified(here, curves, (answers, cut), held, (earlier, later), options.claim)
    made = Triage(answers, cut, curves, None if found is None else found.confidence, options.claim, method,
                  1.0 if found is None else found.bound, labels, len(later), _digest(train),
                  baseline.sklearn_version(), options.small if answers != "linear" else None)
    counted = [(here, later, [held[at] for at in later])]
    if test:
        there = {name: tier.of(range(number, number + len(test))) for name, tier in tiers.items()}
        counted.append((there, list(range(len(test))), list(test)))
    figures = [_figures({name: tier.of(places) for name, tier in part.items()}, made, examples)
               for part, places, examples in counted]
    made = Triage(**{**vars(made), "figures": figures[0], "test": figures[1] if test else ()})
    _write(options.out, made, train)
    return made


def sort(folder: Path, files: Sequence[Path], watcher: Watcher = SILENT) -> list[SortedRow]:
    """Labels rows by a folder that `fit` wrote; their own labels, if they have some, are not looked at."""
    made = read(folder)
    train, examples = data.read([folder / ROWS]), data.read(files)
    if _digest(train) != made.train_digest:
        raise EvidenceError(f"{folder / ROWS} has changed since it was certified",
                            hint="brise triage fit makes another")
    if baseline.sklearn_version() != made.sklearn:
        raise EvidenceError(f"the linear model was certified with scikit-learn {made.sklearn}, here is "
                            f"{baseline.sklearn_version()}", hint="brise triage fit certifies it again")
    tiers = _tiers(train, examples, made.labels, made.small, watcher)
    return _sorted(tiers, made, examples)


def read(folder: Path) -> Triage:
    """What `fit` wrote into a folder; EvidenceError if that is something else."""
    path = folder / FILE
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_FILE_BYTES))
        if value.pop("brise_triage") != VERSION:
            raise ValueError("another version")
        small = value.pop("small")
        return Triage(**{**value, "claim": RiskClaim(**value["claim"]), "labels": tuple(value["labels"]),
                         "curves": {name: ChanceCurve(**each) for name, each in value["curves"].items()},
                         "figures": tuple(map(_read_figures, value["figures"])),
                         "test": tuple(map(_read_figures, value["test"]))},
                      small=None if small is None else SmallTier(
                          **{**small, "adapter": None if small["adapter"] is None else Path(small["adapter"])}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"{path}: this is no triage: {error}", hint="brise triage fit makes one") from error


def _tiers(train: Sequence[EvalExample], examples: Sequence[EvalExample], labels: Sequence[str],
           small: SmallTier | None, watcher: Watcher) -> dict[str, _Tier]:
    learned = baseline.classified(train, examples)
    tiers = {"linear": _Tier([label for label, _ in learned], np.array([lead for _, lead in learned], np.float64))}
    if small is not None:
        local = load_local(small.model, small.adapter, any_base=False, threads=small.threads, watcher=watcher)
        answerer = LocalAnswerer(local.model, AnswerSettings(small.max_tokens), local.digest, adapter=local.adapter,
                                 has_logprob=True)
        with watcher.progress(f"asking {answerer.name}", len({each.digest for each in examples}), "rows") as advance:
            answers = answer_all(answerer, examples, None, advance).answers
        tiers["small"] = _Tier([answer.text.strip() for answer in answers],
                               np.array([_confidence(answer, labels) for answer in answers], np.float64))
    return tiers


def _confidence(answer: EvalAnswer, labels: Sequence[str]) -> float:
    usable = answer.error is None and answer.text.strip() in labels and answer.logprob is not None
    return float(answer.logprob or 0.0) if usable else -math.inf


def _split(examples: Sequence[EvalExample]) -> tuple[list[int], list[int]]:
    """The places of the rows of the third of conversations that began first, and of the others."""
    names = list(dict.fromkeys(example.conversation for example in examples))
    if len(names) < 3 * MIN_CLUSTERS:
        raise EvidenceError(f"there are {len(names)} independent rows to calibrate with, at least {3 * MIN_CLUSTERS} "
                            "are needed: a third to choose the thresholds, the others to certify one")
    first = set(names[:round(FITTED * len(names))])
    return ([at for at, each in enumerate(examples) if each.conversation in first],
            [at for at, each in enumerate(examples) if each.conversation not in first])


def _curve(tier: _Tier, examples: Sequence[EvalExample]) -> ChanceCurve:
    usable = np.flatnonzero(np.isfinite(tier.confidences))
    if not len(usable):
        return ChanceCurve(-500.0, 0.0, 0.0, 1.0)
    fitted = logistic.fit(tier.confidences[usable, None], 1 - tier.wrong(examples)[usable])
    return ChanceCurve(fitted.bias, float(fitted.weights[0]), float(fitted.means[0]), float(fitted.scales[0]))


def _chosen(tiers: Mapping[str, _Tier], curves: Mapping[str, ChanceCurve], examples: Sequence[EvalExample],
            claim: RiskClaim) -> tuple[Answers, float]:
    """Who answers, and the linear model's chance from which it does: what would keep most on the earlier rows.

    The small model must be worth it.
    """
    def kept(cut: float) -> float:
        chances, wrong, _ = _combined(tiers, curves, cut, examples)
        return thresholds.oracle(chances, wrong, claim)
    if "small" not in tiers:
        return "linear", 0.0
    cuts = np.unique(np.quantile(curves["linear"].chances(tiers["linear"].confidences), np.linspace(0.05, 0.95, 19)))
    best = max((float(cut) for cut in (math.inf, *cuts)), key=kept)
    if kept(best) <= kept(0.0) + WORTH:
        return "linear", 0.0
    return ("small", best) if best == math.inf else ("cascade", best)


def _combined(tiers: Mapping[str, _Tier], curves: Mapping[str, ChanceCurve], cut: float,
              examples: Sequence[EvalExample]) -> tuple[Floats, Floats, list[str]]:
    """The chance of each row's label, whether it is wrong, and whose it is."""
    chances = {name: curves[name].chances(tier.confidences) for name, tier in tiers.items()}
    is_linear = np.ones(len(examples), bool) if "small" not in tiers else chances["linear"] >= cut
    whose = ["linear" if each else "small" for each in is_linear]
    wrong = {name: tier.wrong(examples) for name, tier in tiers.items()}
    second = "small" if "small" in tiers else "linear"
    return (np.where(is_linear, chances["linear"], chances[second]),
            np.where(is_linear, wrong["linear"], wrong[second]), whose)


def _certified(tiers: Mapping[str, _Tier], curves: Mapping[str, ChanceCurve], chosen: tuple[Answers, float],
               examples: Sequence[EvalExample], sides: tuple[list[int], list[int]], claim: RiskClaim,
               ) -> tuple[Answers, float, Threshold | None, str]:
    """Who answers, from which linear chance on, and the certified threshold.

    What was chosen on the earlier rows can fail to be certified where the linear model alone does not. So both are
    tried, each with half of delta, and the small model stays only if it is worth it on the later rows, too.
    """
    if chosen[0] == "linear":
        return (*chosen, *_certify(tiers, curves, chosen[1], examples, sides, claim))
    half = replace(claim, delta=claim.delta / 2)
    found, method = _certify(tiers, curves, chosen[1], examples, sides, half)
    alone, its_method = _certify(tiers, curves, 0.0, examples, sides, half)
    if alone is not None and (found is None or found.kept <= alone.kept + WORTH):
        return "linear", 0.0, alone, its_method
    return (*chosen, found, method)


def _certify(tiers: Mapping[str, _Tier], curves: Mapping[str, ChanceCurve], cut: float, examples: Sequence[EvalExample],
             sides: tuple[list[int], list[int]], claim: RiskClaim) -> tuple[Threshold | None, str]:
    chances, wrong, _ = _combined(tiers, curves, cut, examples)
    earlier, later = sides
    wanted = [value for value in thresholds.sequence(chances[earlier], wrong[earlier], len(later), claim) if value > 0]
    return thresholds.certify(chances[later], wrong[later], [examples[at].conversation for at in later], wanted, claim)


def _figures(tiers: Mapping[str, _Tier], made: Triage, examples: Sequence[EvalExample]) -> tuple[TierFigures, ...]:
    """Each tier alone, and what was made of them."""
    alone = [TierFigures(name, len(examples), _share(int((tier.wrong(examples) == 0).sum()), len(examples)))
             for name, tier in tiers.items()]
    chances, wrong, whose = _combined(tiers, made.curves, made.cut, examples)
    accuracy = _share(int((wrong == 0).sum()), len(examples))
    if made.threshold is None:
        return (*alone, TierFigures(made.answers, len(examples), accuracy))
    kept = chances >= made.threshold
    number = int(kept.sum())
    by_tier = {name: sum(bool(is_kept) and each == name for is_kept, each in zip(kept, whose, strict=True))
               for name in tiers}
    return (*alone, TierFigures(f"{made.answers}, then a person", len(examples), accuracy,
                                _share(number, len(examples)),
                                _share(int(wrong[kept].sum()), number) if number else None, by_tier))


def _sorted(tiers: Mapping[str, _Tier], made: Triage, examples: Sequence[EvalExample]) -> list[SortedRow]:
    chances, _, whose = _combined(tiers, made.curves, made.cut, examples)
    out: list[SortedRow] = []
    for at, (example, chance, name) in enumerate(zip(examples, chances, whose, strict=True)):
        is_kept = made.threshold is not None and chance >= made.threshold
        by: Literal["linear", "small"] = "linear" if name == "linear" else "small"
        out.append(SortedRow(example.place, by if is_kept else "person", tiers[name].labels[at], float(chance)))
    return out


def _share(part: int, whole: int) -> Interval:
    return binomial_interval(part, whole)


def _digest(train: Sequence[EvalExample]) -> str:
    return text_digest("".join(example.digest for example in train))


def _write(folder: Path, made: Triage, train: Sequence[EvalExample]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(json.dumps({"messages": [*example.prompt, {"role": "assistant", "content": example.reference.text}]},
                              ensure_ascii=False) + "\n" for example in train)
    small = None if made.small is None else {**asdict(made.small), "adapter": None if made.small.adapter is None
                                             else str(made.small.adapter.resolve())}
    document: dict[str, Any] = {"brise_triage": VERSION, **asdict(made), "small": small}
    if document["cut"] == math.inf:
        document["cut"] = 2.0  # over every chance: all rows are the small model's
    for name, text in ((ROWS, rows), (FILE, json.dumps(document, indent=1, allow_nan=False))):
        with staged_file(folder / name, len(text.encode())) as file:
            file.write(text.encode())


def _read_figures(value: Mapping[str, Any]) -> TierFigures:
    shares = {name: None if value[name] is None else Interval(**value[name]) for name in ("kept", "error")}
    return TierFigures(value["name"], value["rows"], Interval(**value["accuracy"]), shares["kept"], shares["error"],
                       value["by_tier"])
