"""`brise.prove`: may the small model take over?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from brise.api.options import check
from brise.api.rows import Row, as_files
from brise.api.words import python_words
from brise.errors import EvidenceError, RequestError
from brise.prove import run as proof_run
from brise.prove.guards import Margins
from brise.prove.options import (
    EXPIRES_DAYS,
    SETTLE_S,
    LiveOptions,
    PairOptions,
    ProveOptions,
    ScoringOptions,
    SmallModelOptions,
)
from brise.prove.proof import Terms
from brise.prove.run import ProveResult
from brise.stats.clusters import Per, Weighting
from brise.stats.labels import LabelSource
from brise.watch import SILENT, Watcher

T = TypeVar("T")
Moment = float | datetime  # seconds since the epoch, or a time with its zone


class ProofOptions(TypedDict, total=False):
    """What a proof may be given. None stands for the default; margins and levels are shares: 0.02 is 2 points.

    Attributes:
        small_model: The small model that is meant, where several answered in the shadow.
        judgements: The file with what people said of the pairs of a log, as `brise label` writes it.
        since: Only what was asked from then on.
        until: Only what was asked before.
        any_context: System prompt and tools may change; the certificate is bound to none. Default: False.
        skip_bad: Rows of the log that cannot be read are counted and not refused. Default: False.
        cluster: The label that tells independent clusters apart. Default: the conversation.
        settle: Seconds of a captured conversation that count. Default: 3600.
        live: Two models that answer examples now, in place of pairs that exist.
        model: What the small model is, a name in the store or a path: its digests go into the certificate.
        adapter: And the folder of its adapter; no pair may be older than it.
        any_base: Take the adapter although its lineage names another model. Default: False.
        per: What weighs alike in the claim, "answer" or "conversation". Default: "answer".
        rows_per_conversation: With per="answer": answers of a conversation that count, the first ones, stated before
            the data are seen. Default: the power of two that covers the first 30 conversations.
        alpha: How often a worse model may be promoted, over all candidates. Default: 0.05.
        power: How surely the plan wants to show an equal one. Default: 0.9.
        discordance: For the plan: the share of answers that will differ. Default: as in the data.
        candidate: This is the so-many-th small model that is tried on these data. Default: 1.
        slices: Labels of which each value is proven by itself. Default: every label of 2 to 20 values.
        slice_margin: How much worse it may be in a slice. Default: 0.05.
        margins: How much worse it may be in speed, validity, refusals and length.
        label_source: Who says what an answer is worth: "outcome", "human", "judge" or "fidelity". Default: the best one
            that speaks of all pairs that differ.
        draw: With the label source "judge": the share of its opinions that people were asked about.
        score: How answers are compared with references. Default: by the rows.
        scorer: Compare with a function of yours, FILE.py:FUNCTION; its file is run.
        figure: The figure of the score that counts.
        train: Files that the small model was tuned on: no pair may be of them.
        certificate: Where the certificate of a promotion is written. Default: beside the store; of a log, none is.
        expires_days: How long it is good for. Default: 30.
        plan_only: Say what it takes, and look at nothing. Default: False.
        watcher: Hears how far the work has come.
    """

    small_model: str | None
    judgements: str | Path | None
    since: Moment | None
    until: Moment | None
    any_context: bool | None
    skip_bad: bool | None
    cluster: str | None
    settle: float | None
    live: LiveOptions | None
    model: str | Path | None
    adapter: str | Path | None
    any_base: bool | None
    per: Per | None
    rows_per_conversation: int | None
    alpha: float | None
    power: float | None
    discordance: float | None
    candidate: int | None
    slices: Sequence[str] | None
    slice_margin: float | None
    margins: Margins | None
    label_source: LabelSource | None
    draw: float | None
    score: str | None
    scorer: str | None
    figure: str | None
    train: Sequence[str | Path] | None
    certificate: str | Path | None
    expires_days: int | None
    plan_only: bool | None
    watcher: Watcher | None


def prove(pairs: str | Path | Iterable[Row] | None = None, *, task: str | None = None,
          store: str | Path | None = None, margin: float = 0.02, **options: Unpack[ProofOptions]) -> ProveResult:
    """Tests whether the small model may take over, by a test that may be looked at every day.

    `verdict` is "promote", "not good enough" or "undecided"; `proof.outcome.path` is the evidence after each cluster,
    and `certificate` is signed, if there is one. `document` has everything as JSON.

    Args:
        pairs: A log that has both answers, the path of JSON lines or rows in memory: prompt or messages, small, large,
            and reference if there is one.
        task: Or the workflow in the store of captured traffic. With `pairs` its name.
        store: The store, a path or a postgresql:// URL. Default: the one of `brise.gateway`.
        margin: How much worse the small model may be, as a share: 0.02 is 2 points.
        **options: See `ProofOptions`.

    Raises:
        EvidenceError: The data cannot carry the claim, or arguments contradict each other.
    """
    check(options, ProofOptions)
    if pairs is None and task is None and options.get("live") is None:
        raise EvidenceError("nothing says where the answers are",
                            hint="pairs=, a log that has both answers, or task= in captured traffic")
    with python_words(), ExitStack() as stack:
        log = None if pairs is None else stack.enter_context(as_files(pairs, "pairs"))[0]
        return proof_run.run(ProveOptions(
            _pairs(log, task, store, options), options.get("live") or LiveOptions(),
            SmallModelOptions(_text(options.get("model")), _path(options.get("adapter")),
                              options.get("any_base") or False),
            _terms(margin, options), _scoring(options), _share(options.get("discordance"), "discordance"),
            options.get("candidate"), tuple(map(Path, options.get("train") or ())), _path(options.get("certificate")),
            _or(options.get("expires_days"), EXPIRES_DAYS), options.get("plan_only") or False),
            options.get("watcher") or SILENT)


def _pairs(log: Path | None, task: str | None, store: str | Path | None, options: ProofOptions) -> PairOptions:
    return PairOptions(
        log, task, _text(store), options.get("small_model"), _path(options.get("judgements")),
        _seconds(options.get("since")), _seconds(options.get("until")), options.get("any_context") or False,
        options.get("cluster"), _or(options.get("settle"), SETTLE_S), options.get("skip_bad") or False)


def _terms(margin: float, options: ProofOptions) -> Terms:
    usual, slices = Terms(), options.get("slices")
    return Terms(
        _margin(margin, "margin"), _or(_share(options.get("alpha"), "alpha"), usual.alpha),
        power=_or(_share(options.get("power"), "power"), usual.power),
        slice_delta=_margin(_or(options.get("slice_margin"), usual.slice_delta), "slice_margin"),
        dimensions=None if slices is None else tuple(slices), margins=options.get("margins") or usual.margins,
        weighting=Weighting(_or(options.get("per"), "answer"), options.get("rows_per_conversation")))


def _scoring(options: ProofOptions) -> ScoringOptions:
    return ScoringOptions(options.get("label_source"), options.get("draw"), options.get("score"),
                          options.get("scorer"), options.get("figure"))


def _margin(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise RequestError(f"{name} is {value!r}, allowed is a share over 0, under 1: 0.02 is 2 points", param=name)
    return float(value)


def _share(value: float | None, name: str) -> float | None:
    if value is not None and not 0 < value < 1:
        raise RequestError(f"{name} is {value!r}, allowed is a share over 0, under 1", param=name)
    return value


def _seconds(value: Moment | None) -> float | None:
    if not isinstance(value, datetime):
        return value
    if value.tzinfo is None:
        raise RequestError(f"the time {value.isoformat()} has no zone; give it one, such as datetime.UTC",
                           param="since")
    return value.timestamp()


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value).expanduser()


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
