"""`run` proves: from options to a verdict, a line in the ledger, and for a promotion a signed certificate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from brise import settings
from brise.checkpoint.adapters import lineage
from brise.data import identity
from brise.errors import EvidenceError
from brise.evals import data
from brise.evals.example import EvalExample
from brise.evals.scorers import Scorer
from brise.prove import analyses, baselines, cascade, certificates, document, guards, live, scoring, sources
from brise.prove.analyses import Analysis
from brise.prove.baselines import BaselineResult
from brise.prove.certificates import Signed
from brise.prove.document import About
from brise.prove.options import ProveOptions, check, check_named
from brise.prove.pairs import Pair
from brise.prove.proof import Planned, Proof, plan, prove
from brise.prove.sources import PairSource
from brise.stats.sequential_test import Verdict
from brise.text.protocols import Message
from brise.traffic import seal, stores
from brise.traffic.store import TrafficStore
from brise.watch import SILENT, Watcher


@dataclass(frozen=True)
class ProveResult:
    """A result. `document` is all of it as JSON (docs/guides/prove.md says what it has); `proof` is None for
    a plan alone.

    `proof.outcome.path` is the evidence after each cluster. A promotion may have left a signed `certificate`, in the
    file `certificate_path`.
    """

    document: Mapping[str, Any]
    plan: Planned
    proof: Proof | None = None
    certificate: Signed | None = None
    certificate_path: Path | None = None

    @property
    def verdict(self) -> Verdict | None:
        return None if self.proof is None else self.proof.verdict


def run(options: ProveOptions, watcher: Watcher = SILENT) -> ProveResult:
    """May the small model take over? EvidenceError for options that contradict each other and for data that cannot be
    used.
    """
    check(options)
    is_live = bool(options.live.data)
    if not is_live:
        check_named(options.pairs)
    with sources.opened(options.pairs, is_optional=is_live) as store:
        found = live.select(options, watcher) if is_live else sources.select(options.pairs, store)
        train = data.read(options.train) if options.train else ()
        notes = require_none_trained_on(found.chosen.pairs, train)
        if options.small.adapter is not None:
            require_newer_than(found.chosen.pairs, options.small.adapter)
        return _proven(options, replace(found, notes=(*found.notes, *notes)), store, train, watcher)


def _proven(options: ProveOptions, found: PairSource, store: TrafficStore | None, train: Sequence[EvalExample],
            watcher: Watcher) -> ProveResult:
    pairs, asked = found.chosen.pairs, options.scoring
    if store is not None:
        analyses.require_unexported(store, found.task, {pair.id for pair in pairs})
    scorer = scoring.scorer_of(asked.score, asked.scorer, pairs)
    scored = scoring.score(pairs, asked.label_source, scorer, asked.figure, asked.drawn_share)
    around = document.about(found.task, found.source, pairs, left_out=found.chosen.left_out,
                            changes=found.chosen.changes, cluster=options.pairs.cluster or "conversation",
                            notes=found.notes)
    terms = replace(options.terms, candidate=options.candidate or 1)
    defined = analyses.definition(terms, scored, pairs, {
        "unit": options.pairs.cluster, "settle_s": options.pairs.settle_s, "any_context": options.pairs.any_context})
    this = Analysis(around.task, around.student, around.fingerprint, defined, around.since_s, around.until_s)
    ledger = [] if store is None else list(store.ledger())
    if store is not None:
        terms = replace(terms, candidate=analyses.candidate_number(ledger, this))
    cost = analyses.cost(ledger, this, terms)
    planned = plan(pairs, scored, terms, options.discordance)
    if options.plan_only:
        return ProveResult(document.planned(around, planned, terms) | {"analysis": asdict(cost)}, planned)
    watcher.note(cost.words)
    proof = prove(pairs, scored, terms, planned, found.chosen.missing)
    beside, why_none = _baselines(pairs, proof, scorer, train)
    notes = [*unnamed(pairs), *why_none, *guards.not_asked(proof.guards, terms.margins), *_calibrated(store, around)]
    report = document.proven(replace(around, notes=(*around.notes, *notes)), proof, beside)
    if store is not None:
        analyses.record(store, around, proof, defined, report)
    signed, path = _certified(options, found, around, proof, store)
    return ProveResult({**report, "certificate": None if path is None else str(path)}, planned, proof, signed, path)


def _certified(options: ProveOptions, found: PairSource, around: About, proof: Proof,
               store: TrafficStore | None) -> tuple[Signed | None, Path | None]:
    """The certificate of a promotion. A log without a store leaves one only where the options name its file."""
    if proof.verdict != "promote" or (store is None and options.certificate is None):
        return None, None
    home, asked, chosen = settings.read().home, options.scoring, options.pairs
    is_captured = chosen.log is None and not options.live.data
    certificate = certificates.make(
        proof, around, found.chosen.pairs,
        replace(certificates.small_model_of(options.small, around.student), fingerprint=around.fingerprint),
        now_s=time.time(), days=options.expires_days, any_context=chosen.any_context,
        source_digest=found.source_digest, selection={
            "rung": proof.scored.label_source, "score": asked.score, "scorer": asked.scorer, "figure": asked.figure,
            "unit": chosen.cluster, "settle_s": float(chosen.settle_s),
            "student": found.chosen.pairs[0].small.model if is_captured else None, "draw": float(asked.drawn_share)})
    signed = certificates.sign(certificate, seal.load_or_create_signing_key(stores.keys_folder(home)))
    path = options.certificate or certificates.place_of(signed, home)
    certificates.write(signed, path)
    if store is not None:
        certificates.record(store, signed, path.absolute())
    return signed, path


def _baselines(pairs: Sequence[Pair], proof: Proof, scorer: Scorer | None,
               train: Sequence[EvalExample]) -> tuple[list[BaselineResult], list[str]]:
    """The baselines, and the reason if there is no classifier."""
    classical, why_not = baselines.classical_if_it_can(pairs, proof.clusters, scorer, train, proof.terms.test)
    found = baselines.itself(pairs, proof.clusters) + ([] if classical is None else [classical])
    return found, [] if why_not is None else [why_not]


def _calibrated(store: TrafficStore | None, around: About) -> list[str]:
    """A note if a cascade's threshold was set on some of these data: then they would count twice."""
    until_s = None if store is None else cascade.calibrated_until(store, around.task, around.student)
    if until_s is None or around.since_s is None or around.since_s >= until_s:
        return []
    time = document.time_words(until_s)
    return [f"brise cascade set its threshold on data up to {time}, some of which are in this window; --since {time} "
            "would keep them apart"]


def unnamed(pairs: Sequence[Pair]) -> list[str]:
    """A note on rows of which nobody said which conversation they are of."""
    number = sum(not pair.is_named for pair in pairs)
    if not number:
        return []
    who = "no row names" if number == len(pairs) else f"{number:,} of {len(pairs):,} rows do not name"
    return [f"{who} its conversation, so these rows are taken as independent, but for those that begin with the same "
            "question. If rows belong together, a worse model is promoted too often: in a simulation with six rows a "
            "conversation (rho 0.7) in 39 % of runs in place of 5 %. 'conversation' in each row of a log, or "
            "--cluster LABEL, tells them apart"]


def require_none_trained_on(pairs: Sequence[Pair], train: Sequence[EvalExample]) -> list[str]:
    """EvidenceError if a pair is of a conversation that is among these rows, or asks the same as one of them.

    Users do ask the same again. So where all pairs say when they were asked, the same question is no error but a note.
    """
    asked = {_asked(example.prompt) for example in train}
    conversations = {example.conversation for example in train if not identity.is_derived(example.conversation)}
    known = [pair for pair in pairs if pair.cluster in conversations]
    again = [pair for pair in pairs if pair.prompt and _asked(pair.prompt) in asked]
    found = known or ([] if all(pair.at_s is not None for pair in pairs) else again)
    if found:
        raise EvidenceError(f"{len(found)} of {len(pairs)} pairs are of what the small model was trained on; the first "
                            f"is {found[0].place}", hint="prove on what was asked after its training data were drawn")
    return [f"{len(again)} of {len(pairs)} pairs ask, word for word, what the training data ask"] if again else []


def require_newer_than(pairs: Sequence[Pair], adapter: Path) -> None:
    """EvidenceError if a pair was asked before the adapter was made: it may have learned from it."""
    known = lineage.read_lineage(adapter)
    if known is None:
        return
    made_s = datetime.fromisoformat(known.created).timestamp()
    older = [pair for pair in pairs if pair.at_s is not None and pair.at_s < made_s]
    if older:
        raise EvidenceError(f"{len(older)} of {len(pairs)} pairs were asked before the adapter {adapter.name!r} was "
                            f"made ({known.created}), and may have been learned from",
                            hint=f"--since {known.created}")


def _asked(prompt: Sequence[Message]) -> str:
    return identity.canonical([{"role": message["role"], "content": message.get("content")} for message in prompt
                               if message["role"] not in ("system", "developer")])
