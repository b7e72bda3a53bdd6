"""`run` certifies a cascade: which answers of the small model may be kept, with a guarantee about the kept ones.

Each run is an interim analysis and a line of the ledger, and all that use the same data share one delta: the k-th
analysis of data that are not fresh has delta x 6 / (pi k)^2. At any one request the analyses that use it have numbers
of at least 1, 2, 3, ... in their order, so that together they break their guarantees with probability delta at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from brise import settings
from brise.errors import EvidenceError
from brise.files.digests import text_digest
from brise.prove import calibration_rows
from brise.prove.calibrate import Calibration, calibrate, plan
from brise.prove.calibration_rows import CalibrationRows, WantedSource
from brise.stats import thresholds
from brise.stats.clusters import Weighting
from brise.stats.sequential_test import alpha_left
from brise.stats.thresholds import RiskClaim
from brise.switch.rule import to_body
from brise.switch.state import AUDIT
from brise.traffic.ledger import canonical
from brise.traffic.records import LedgerEntry
from brise.traffic.store import TrafficStore
from brise.traffic.stores import open_store
from brise.watch import SILENT, Watcher

ANALYSIS, RULE = "certification", "cascade"  # lines of the ledger
REFUSED = "refused"  # nothing was certified or found impossible, so it costs nothing


@dataclass(frozen=True)
class CascadeOptions:
    """Of kept answers at most `claim.risk` are wrong, and this itself fails with `claim.delta`, over all interim
    analyses.

    None: the only small model that answered in the shadow, the best signal (or all, if together they are better), all
    times. The claim is about answers, or about conversations that weigh alike (`weighting`). With `dry_run` no rule is
    written; it is an interim analysis all the same. With `plan_only` it is none: nothing is certified, and nothing
    written.
    """

    task: str
    small_model: str | None = None
    claim: RiskClaim = RiskClaim()
    label_source: WantedSource = "auto"
    score: str = "auto"
    signals: tuple[str, ...] | None = None
    since_s: float | None = None
    until_s: float | None = None
    dry_run: bool = False
    plan_only: bool = False
    store: str | None = None
    weighting: Weighting = Weighting()


@dataclass(frozen=True)
class InterimAnalysis:
    """`test` is the digest of all that the result depends on: the data with their labels, and what was asked of them.

    `claim` is what the user stated, of which the `number`-th analysis has a part.
    """

    task: str
    candidate: str
    test: str
    claim: RiskClaim
    since_s: float
    until_s: float
    number: int = 1
    is_again: bool = False  # the same was analysed before, so that it costs nothing

    @property
    def words(self) -> str:
        """What the analysis takes of delta, to be known before it is made."""
        own, whole, left = (f"{100 * part:.2g} %" for part in (
            self.share.delta, self.claim.delta, alpha_left(self.claim.delta, self.number)))
        if self.is_again:
            return f"the same was analysed before: interim analysis {self.number}, again, costs nothing"
        return (f"interim analysis {self.number} of these data takes {own} of a delta of {whole}, and leaves {left} to "
                "all others")

    @property
    def share(self) -> RiskClaim:
        """The claim with this analysis' part of delta."""
        return thresholds.of_analysis(self.claim, self.number)


@dataclass(frozen=True)
class CascadeResult:
    """The answers it was computed from, what they say, and which interim analysis of them this was, or would be."""

    rows: CalibrationRows
    calibration: Calibration
    analysis: InterimAnalysis
    is_plan: bool = False

    def to_json(self) -> Mapping[str, Any]:
        """What --json prints."""
        rows, found, analysis = self.rows, self.calibration, self.analysis
        return {"task": found.draft.task, "candidate": rows.candidate, "risk": analysis.claim.risk,
                "delta": analysis.claim.delta, "look": {"number": analysis.number, "delta": analysis.share.delta},
                "labels": rows.label_source, "rows": len(rows.rows), "unlabelled": rows.unlabelled,
                "per": "conversation" if found.feasibility.most_rows is None else "answer",
                "left_out": [{"rows": number, "why": why} for number, why in rows.left_out],
                "feasibility": asdict(found.feasibility), "signals": [term.signal for term in found.draft.terms],
                "vetoes": list(found.draft.vetoes), "missing_signals": list(found.missing),
                "rule": None if found.rule is None else to_body(found.rule),
                "why_not": found.why or None, "saving_usd": found.saving_usd,
                **({"is_plan": True} if self.is_plan else {})}


def run(options: CascadeOptions, watcher: Watcher = SILENT) -> CascadeResult:
    """Certifies a rule from captured traffic, and writes it into the ledger, unless it is a dry run or a plan."""
    if options.weighting.per == "conversation" and options.weighting.most_rows is not None:
        raise EvidenceError("--per conversation and --rows-per-conversation are both given, one is allowed")
    with closing(open_store(options.store, settings.read().home, must_exist=True)) as store:
        rows = calibration_rows.read(store, options.task, options.small_model, options.since_s, options.until_s,
                                     label_source=options.label_source, scorer=options.score)
        analysis = analysis_of(store, rows, options)
        if options.plan_only:
            planned = plan(rows, options.task, analysis.share, scorer=options.score, signals=options.signals,
                           weighting=options.weighting)
            return CascadeResult(rows, planned, analysis, is_plan=True)
        watcher.note(analysis.words)
        found = _calibrated(store, rows, analysis, options)
        if found.rule is not None and not options.dry_run:
            store.append(RULE, to_body(found.rule))
    return CascadeResult(rows, found, analysis)


def _calibrated(store: TrafficStore, rows: CalibrationRows, analysis: InterimAnalysis,
                options: CascadeOptions) -> Calibration:
    """Calibrates, and records the result in the ledger before anybody sees it."""
    try:
        found = calibrate(rows, options.task, analysis.share, scorer=options.score, audit=AUDIT,
                          signals=options.signals, weighting=options.weighting)
    except EvidenceError as error:
        record(store, analysis, REFUSED, why=str(error.args[0]))
        raise
    record(store, analysis, "impossible" if found.rule is None else "certified",
           rule=None if found.rule is None else found.rule.digest, why=found.why)
    return found


def analysis_of(store: TrafficStore, rows: CalibrationRows, options: CascadeOptions) -> InterimAnalysis:
    """The interim analysis of these rows, with its number."""
    claim = options.claim
    signals = None if options.signals is None else list(options.signals)
    asked = {"candidate": rows.candidate, "rung": rows.label_source, "scorer": options.score, "risk": claim.risk,
             "delta": claim.delta, "signals": signals, "rows": [
                 [row.exchange, row.cluster, row.at_s, dict(row.signals), bool(row.differs), bool(row.wrong)]
                 for row in rows.rows]}
    if options.weighting != Weighting() and len({row.cluster for row in rows.rows}) < len(rows.rows):
        asked["weighting"] = asdict(options.weighting)
    test = text_digest(canonical(asked))
    found = InterimAnalysis(options.task, rows.candidate, test, claim, rows.rows[0].at_s, rows.rows[-1].at_s)
    entries = list(store.ledger())
    is_again = any(entry.kind == ANALYSIS and entry.body.get("test") == test and entry.body.get("task") == found.task
                   and entry.body.get("result") != REFUSED for entry in entries)
    return replace(found, number=analysis_number(entries, found), is_again=is_again)


def analysis_number(entries: Iterable[LedgerEntry], this: InterimAnalysis) -> int:
    """One more than the other analyses of the task before the first one of this test, except those whose data ended
    before these.
    """
    others, written = set[str](), set[str]()
    for entry in entries:
        body = entry.body
        if entry.kind not in (ANALYSIS, RULE) or body.get("task") != this.task or body.get("result") == REFUSED:
            continue
        if entry.kind == ANALYSIS:
            if body["test"] == this.test:
                break
            written.add(str(body["rule"]))
        elif body.get("digest") in written:
            continue  # what the analysis before it found
        if float(body["until_s"]) >= this.since_s:
            others.add(str(body["test"] if entry.kind == ANALYSIS else body.get("digest")))
    return len(others) + 1


def record(store: TrafficStore, this: InterimAnalysis, result: str, *, rule: str | None = None,
           why: str = "") -> LedgerEntry:
    """Writes the analysis' line, before anybody sees its result.

    EvidenceError if another analysis was written in between: then this one has another number, and its result is
    withheld.
    """
    entry = store.append(ANALYSIS, {
        "task": this.task, "candidate": this.candidate, "test": this.test, "number": this.number,
        "risk": this.claim.risk, "delta": this.share.delta, "delta_of_all": this.claim.delta,
        "since_s": this.since_s, "until_s": this.until_s, "result": result, "rule": rule, "reason": why})
    now = analysis_number((line for line in store.ledger() if line.number <= entry.number), this)
    if result != REFUSED and now != this.number:
        raise EvidenceError(f"another interim analysis was written meanwhile, this one is number {now} of these data",
                            hint="the same command again gives it its part of delta")
    return entry


def calibrated_until(store: TrafficStore, task: str, small_model: str) -> float | None:
    """The end of the data on which a rule for this pair was fitted last; None: there is no rule."""
    found = [entry.body for entry in store.ledger() if entry.kind == RULE
             and (entry.body.get("task"), entry.body.get("candidate")) == (task, small_model)]
    return max((float(body["until_s"]) for body in found), default=None)
