"""Interim analyses of `brise prove` as lines of the ledger: which candidate one is of, and which tests are still open.

A test is a model, a definition of what is shown of it, and where its data begin. Analysed again with more data it
is the same test; that is what it is made for. Anything else, chosen afterwards, might be chosen because it is lucky. So
all that are tried on the same data share one alpha, whatever differs between them.

A test is open while its newest analysis says "undecided". Its data must not be trained on until it closes; once they
were, they are no evidence any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from brise.errors import EvidenceError
from brise.files.digests import text_digest
from brise.prove.document import About
from brise.prove.pairs import Pair
from brise.prove.proof import Proof, Terms
from brise.prove.scoring import PairScores
from brise.stats.sequential_test import alpha_left, candidate_alpha
from brise.traffic.ledger import canonical
from brise.traffic.records import LedgerEntry
from brise.traffic.store import Query, TrafficStore

ANALYSIS, EXPORTED = "proof", "export"  # lines of the ledger
UNDECIDED = "undecided"
MOST_KEPT = 200  # points of a path in an analysis' line


@dataclass(frozen=True)
class Analysis:
    """One interim analysis: `definition` is the digest of what is shown, `since_s` and `until_s` are when the first
    and the last of its data were asked.
    """

    task: str
    student: str
    fingerprint: str | None
    definition: str
    since_s: float | None
    until_s: float | None


def record(store: TrafficStore, around: About, proof: Proof, definition: str,
           report: Mapping[str, Any]) -> LedgerEntry:
    """Writes down an interim analysis and what the data said: later candidates pay for it.

    The line has the `report` (document.proven), its path with fewer points, beside what later analyses look for.
    """
    gate = report["gate"]
    step = -(-len(gate["at"]) // MOST_KEPT) or 1
    thinned = {name: gate[name][::-step][::-1] for name in ("at", "path", "futility_path")}
    return store.append(ANALYSIS, {
        "scores": report["scores"], "plan": report["plan"], "baselines": report["baselines"],
        "gate": {**gate, **thinned}, "report": {name: report[name] for name in _SHOWN},
        "task": around.task, "student": around.student, "fingerprint": around.fingerprint, "definition": definition,
        "candidate": proof.terms.candidate, "verdict": proof.verdict, "reason": proof.reason,
        "units": len(proof.outcome.path), "evidence": float(proof.outcome.path[-1]), "delta": proof.terms.delta,
        "alpha": proof.terms.test.alpha, "per": proof.terms.weighting.per,
        "cut": len(proof.clusters.cut), "labels": proof.scored.label_source, "since_s": around.since_s,
        "until_s": around.until_s})


# What a report of the proof shows besides.
_SHOWN = ("version", "source", "teachers", "window", "left_out", "changes", "notes", "terms", "doubts", "labels",
          "guards", "slices")


def document_of(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document of the proof that a line tells of (document.proven); None: a line of an older version, with less."""
    shown = body.get("report")
    if not isinstance(shown, Mapping):
        return None
    return {**shown, **{name: body[name] for name in (
        "task", "student", "verdict", "reason", "plan", "gate", "scores", "baselines")}}


def definition(terms: Terms, scored: PairScores, pairs: Sequence[Pair], selected: Mapping[str, object]) -> str:
    """The digest of the claim: label source and score, margins of quality, guards and slices, and how pairs were
    `selected`.

    Not of alpha and power: at which level the same evidence is read changes nothing in it.
    """
    source = scored.label_source
    judges = sorted({known.who for pair in pairs for known in pair.judgements if known.label_source == "judge"})
    # Where each conversation has one answer, both claims are the same one, which is as old as the ledger.
    is_other = terms.weighting.per == "answer" and len({pair.cluster for pair in pairs}) < len(pairs)
    claim = {**(asdict(terms.weighting) if is_other else {}), "rung": source, "delta": terms.delta,
             "futility": terms.futility, "margins": asdict(terms.margins),
             "slice_delta": terms.slice_delta, "dimensions": terms.dimensions, "selected": dict(selected),
             "scored": scored.definition if source == "outcome" else None,
             "judge": [judges, scored.bound] if source == "judge" else None}
    return text_digest(canonical(claim))


def candidate_number(entries: Iterable[LedgerEntry], this: Analysis) -> int:
    """One more than the other tests that were analysed on data from its first request on.

    A test that was analysed before keeps its number; other weights under the same name are another test. Only
    if another one began after its data, counting from one again, and it now grows into these, it counts anew.
    """
    name = this.student, this.fingerprint, this.definition, this.since_s
    own, own_until = None, None
    others, missed = set[tuple[object, ...]](), list[float]()
    for entry in entries:
        body = entry.body
        if entry.kind != ANALYSIS or body.get("task") != this.task:
            continue
        began, until = _time(body.get("since_s")), _time(body.get("until_s"))
        test = str(body.get("student")), body.get("fingerprint"), body.get("definition"), began
        if test == name:
            own, own_until = max(int(body["candidate"]), 1), until
            missed = [time for time in missed if until is not None and time > until]
        elif this.since_s is None or until is None or until >= this.since_s:  # else its data are older than these
            others.add(test)
            if own_until is not None and began is not None and began > own_until:
                missed.append(began)
    grown = any(this.until_s is None or time <= this.until_s for time in missed)
    if own is None:
        return len(others) + 1
    return max(own, len(others) + 1) if grown else own


@dataclass(frozen=True)
class AnalysisCost:
    """What an interim analysis takes of alpha: as the `number`-th test of its data, or nothing if it was there before.
    """

    number: int
    alpha: float
    alpha_of_all: float
    left: float  # to all tests of these data that may follow
    is_again: bool = False

    @property
    def words(self) -> str:
        """What a user should know before the analysis is made."""
        own, whole, left = (f"{100 * part:.2g} %" for part in (self.alpha, self.alpha_of_all, self.left))
        if self.is_again:
            return (f"this test was analysed before: another analysis of it costs nothing, it has {own} of an alpha of "
                    f"{whole} (candidate {self.number} of these data)")
        return (f"an analysis as candidate {self.number} of these data takes {own} of an alpha of {whole}, and leaves "
                f"{left} to all others; further analyses of the same test cost nothing")


def cost(entries: Iterable[LedgerEntry], this: Analysis, terms: Terms) -> AnalysisCost:
    """What this analysis takes; `terms` has its candidate's number."""
    name = this.student, this.fingerprint, this.definition, this.since_s
    is_again = any(entry.kind == ANALYSIS and entry.body.get("task") == this.task and name == (
        str(entry.body.get("student")), entry.body.get("fingerprint"), entry.body.get("definition"),
        _time(entry.body.get("since_s"))) for entry in entries)
    return AnalysisCost(terms.candidate, candidate_alpha(terms.alpha, terms.candidate), terms.alpha,
                        alpha_left(terms.alpha, terms.candidate), is_again)


def open_since(entries: Iterable[LedgerEntry]) -> dict[str, float | None]:
    """The tasks with an open test, and when its data begin (None: nobody knows).

    A test is one model's of a task, by name and fingerprint; its newest analysis says whether it is open.
    """
    newest = dict[tuple[str, str, str], Mapping[str, Any]]()
    for entry in entries:
        if entry.kind == ANALYSIS:
            body = entry.body
            newest[str(body.get("task")), str(body.get("student")), str(body.get("fingerprint"))] = body
    found = dict[str, float | None]()
    for (task, _, _), body in newest.items():
        if body.get("verdict") != UNDECIDED:
            continue
        since_s = _time(body.get("since_s"))
        known = found.get(task, since_s)
        found[task] = None if since_s is None or known is None else min(since_s, known)
    return found


def held(store: TrafficStore) -> dict[str, str]:
    """Conversations with a shadow answer since an open test's data began, and its task: later ones, too, for the test
    goes on.
    """
    return {exchange.conversation or exchange.id: task for task, since_s in open_since(store.ledger()).items()
            for exchange in store.exchanges(Query(task=task, since_s=since_s, has_answer="shadow", content=False))}


def record_export(store: TrafficStore, tasks: Mapping[str, Iterable[str]]) -> None:
    """That conversations of open tests were exported all the same: a line for each task, with digests of their names.
    """
    for task, names in tasks.items():
        store.append(EXPORTED, {"task": task, "conversations": sorted({_digest(name) for name in names}),
                                "by": "user", "reason": "brise log export --include-gate"})


def require_unexported(store: TrafficStore, task: str, exchanges: Collection[str]) -> None:
    """EvidenceError if the conversation of one of these was exported while a test of the task was open."""
    taken = {name for entry in store.ledger() if entry.kind == EXPORTED and entry.body.get("task") == task
             for name in entry.body["conversations"]}
    if not taken:
        return
    times = [exchange.at_s for exchange in store.exchanges(Query(task=task, has_answer="shadow", content=False))
             if exchange.id in exchanges and _digest(exchange.conversation or exchange.id) in taken]
    if times:
        last = datetime.fromtimestamp(max(times) + 1, UTC).isoformat(timespec="seconds")
        raise EvidenceError(f"{len(times)} of {len(exchanges)} pairs are of conversations that were exported for "
                            "training while the test was open (brise log export --include-open-tests)",
                            hint=f"--since {last} begins after them")


def _digest(conversation: str) -> str:
    return text_digest(conversation)[:32]


def _time(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
