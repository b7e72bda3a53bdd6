"""The summary of a report in one glance: may the small model take over, why not yet, what would decide it, what it
saves, and who answers now. The terminal, the HTML report and the page in the browser show this object.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from brise.report import figures
from brise.report.advice import Choice, saving
from brise.report.document import Status
from brise.report.report import SwitchReport
from brise.stats.clusters import MIN_CLUSTERS

Verdict = Literal["yes", "in part", "not yet", "no"]
QUESTION = "May the small model take over?"
TONES: Mapping[Choice, Status] = MappingProxyType({
    "stay": "bad", "not yet": "unsure", "switch": "good", "cascade": "good", "classical": "good", "keep": "good"})
_VERDICTS: Mapping[Choice, Verdict] = MappingProxyType({
    "stay": "no", "not yet": "not yet", "switch": "yes", "cascade": "in part", "classical": "no", "keep": "yes"})


@dataclass(frozen=True)
class ReportSummary:
    """The numbers of the sentence; None where one is not known.

    `evidence` is K after so many `clusters`, which promotes at `level`. `more_conversations` and `more_labels` are
    what would decide the test, on the condition `more_if`. `saving_usd` is of a request, the machine included.
    `share` of the conversations are answered by `small_model`, the rest by `large_model`.
    """

    task: str
    status: Status
    verdict: Verdict
    why: str
    conversations: int
    evidence: float | None
    level: float | None
    clusters: int | None
    more_conversations: int | None
    more_labels: int | None
    more_if: str
    saving_usd: float | None
    saving_month_usd: float | None
    small_model: str | None
    large_model: str
    share: float

    @property
    def sentences(self) -> tuple[str, ...]:
        """What each of the numbers means, one sentence each; the first one answers the question."""
        return (f"{self.verdict.capitalize()}: {self.why}.", *self._decides(), self._saves(), self._answers())

    @property
    def sentence(self) -> str:
        """The question and its answer, as one line of text."""
        return " ".join((QUESTION, *self.sentences))

    def to_json(self) -> dict[str, Any]:
        """What --json and the page have of it."""
        return {**vars(self), "question": QUESTION, "sentences": list(self.sentences), "sentence": self.sentence}

    def _decides(self) -> tuple[str, ...]:
        if self.more_conversations is None:
            return ()
        labels = f" and {figures.count(self.more_labels)} more labels" if self.more_labels else ""
        return (f"About {figures.count(self.more_conversations)} more conversations{labels} would decide it, "
                f"{self.more_if}.",)

    def _saves(self) -> str:
        if self.saving_usd is None:
            return "What it saves is not known yet."
        if self.saving_usd <= 0:
            return f"It saves nothing: a request costs {figures.usd(-self.saving_usd)} more, the machine included."
        month = "" if self.saving_month_usd is None else f", {figures.usd(self.saving_month_usd)} a month at this rate"
        return f"Each request that it answers saves {figures.usd(self.saving_usd)}{month}, the machine included."

    def _answers(self) -> str:
        if self.small_model is None or self.share <= 0:
            return f"{self.large_model} answers everything now."
        if self.share >= 1:
            return f"{self.small_model} answers now, and {self.large_model} what it is unsure of."
        return (f"{self.small_model} answers {figures.percent(self.share, 0)} of the conversations now, "
                f"{self.large_model} the rest.")


def summarize(report: SwitchReport) -> ReportSummary:
    """The summary of a report."""
    traffic, past, choice = report.traffic, report.history, report.advice.choice
    proof: Mapping[str, Any] = past.proof or {}
    gate, plan = proof.get("gate") or {}, proof.get("plan") or {}
    costs = {name: cost.usd for name, cost in report.costs.systems.items()}
    saved = saving(costs.get("hosted"), costs.get("small"))
    is_open = choice == "not yet" and past.proven is not None and past.proven.verdict == "undecided"
    running = past.switched if past.switched is not None and past.switched.ended is None else None
    per_day = report.costs.per_day
    return ReportSummary(
        traffic.task, TONES[choice], _VERDICTS[choice], _why(report), traffic.conversations,
        _finite(proof.get("evidence")), _finite(gate.get("level")), proof.get("units"),
        past.proven.more_units if is_open and past.proven is not None else None,
        _more_labels(plan) if is_open and not gate.get("decided_at") else None,
        "" if past.proven is None else past.proven.more_if, saved,
        None if saved is None or not per_day else saved * per_day * 30,
        None if running is None else running.candidate, _large_model(report), 0.0 if running is None else running.share)


def _why(report: SwitchReport) -> str:
    """The reason in a few words, with the numbers that decide."""
    past, advice = report.history, report.advice
    proven, switched = past.proven, past.switched
    if switched is not None and switched.ended is not None:
        return f"the switch was taken back ({switched.ended})"
    if switched is not None:
        forced = "by force, without a certificate" if switched.is_forced else "by its certificate"
        return (f"{switched.candidate} answers {figures.percent(switched.share, 0)} {forced}; {switched.audits} of its "
                "answers were audited")
    if proven is None:
        least = report.traffic.conversations < MIN_CLUSTERS
        return f"{figures.count(report.traffic.conversations)} conversations were captured, " + (
            f"and {MIN_CLUSTERS} are the least that any test accepts" if least else "and nothing was proven yet")
    if advice.choice == "classical":
        return f"{proven.classical} passes the same test, and costs next to nothing a request"
    if advice.choice == "cascade" and past.kept is not None:
        return (f"of the answers that it is sure of, {figures.percent(past.kept.share, 0)} of all, at most "
                f"{figures.percent(past.kept.risk)} are wrong")
    proof = past.proof or {}
    margin, shown = f"{100 * proven.delta:g} points", _evidence_words(proof)
    if proven.verdict == "not good enough":
        return f"the small model was shown to be more than {margin} worse{_after(proof.get('units'))}"
    if proven.verdict == "promote":
        if proven.is_expired:
            return "the certificate has expired"
        saves = ", but it saves nothing" if advice.choice == "stay" else ""
        return f"{shown}, so the small model is at most {margin} worse{saves}"
    is_reached = (proof.get("gate") or {}).get("decided_at") is not None
    return f"{shown}, but {proven.reason}" if is_reached else shown


def _evidence_words(proof: Mapping[str, Any]) -> str:
    """K and the level that decides. A level that was reached once stays reached, whatever K is later."""
    value, gate = _finite(proof.get("evidence")), proof.get("gate") or {}
    level, decided = _finite(gate.get("level")), gate.get("decided_at")
    if level is not None and decided is not None:
        return f"the evidence K reached the {evidence(level)} that it takes{_after(decided)}"
    if value is None or level is None:
        return "the evidence does not suffice"
    return f"the evidence K is {evidence(value)} of {evidence(level)}{_after(proof.get('units'))}"


def _after(clusters: object) -> str:
    return f" after {clusters:,} clusters" if isinstance(clusters, int) else ""


def evidence(value: float) -> str:
    """K with the digits that matter: 0.04, 3.1, 20, 1,204."""
    if value < 0.001:
        return "under 0.001"
    if value >= 1e6:
        return "over 1,000,000"
    digits = 3 if value < 0.1 else 2 if value < 1 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}".removesuffix(".0")


def _more_labels(plan: Mapping[str, Any]) -> int | None:
    """Judgements of pairs that differ which the test with interim analyses takes, beside those that there are."""
    try:
        whole: float = plan["labels"] * plan["anytime_units"] / max(plan["units"], 1)
        return max(math.ceil(whole) - int(plan["have_labels"]), 0)
    except (KeyError, TypeError):
        return None


def _large_model(report: SwitchReport) -> str:
    names = Counter(row.served_by or row.model for row in report.traffic.of("hosted", "escalated"))
    return next((name for name, _ in names.most_common(1)), "the large model")


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
