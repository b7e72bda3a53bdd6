"""`brise prove`: may the small model take over? A verdict that holds at every moment somebody looks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from brise.cli import (
    prove_certificate,
    prove_live,
    prove_options,
    prove_report,
    prove_sources,
    prove_verify,
    terminal,
)
from brise.cli.prove_sources import PairSource
from brise.evals import data
from brise.evals.example import EvalExample
from brise.evals.scorers import Scorer
from brise.prove import baselines, candidates, certificates, guards, open_tests, overlap, scoring
from brise.prove.about import About
from brise.prove.baselines import BaselineResult
from brise.prove.candidates import Shown
from brise.prove.pairs import Pair
from brise.prove.prove import Proof, plan, prove
from brise.prove.scorer import scorer_of
from brise.report import document, html, proof_page
from brise.traffic.store import TrafficStore

STATUS: Mapping[str, int] = MappingProxyType({"promote": 0, "not good enough": 3, "undecided": 4})


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "prove", help="test whether the small model may take over", allow_abbrev=False,
        description="Compare the answers of a small and a large model to the same requests, and say whether the small "
                    "one may take over, by a test that may be looked at every day. Exit status: 0 promote, 3 not good "
                    "enough, 4 undecided.",
        epilog="example: brise prove --pairs log.jsonl --delta 2")
    prove_options.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    prove_options.check(args)
    if args.verify is not None:
        return prove_verify.run(args)
    if not args.data:
        prove_sources.check(args)
    with prove_sources.opened(args, is_optional=bool(args.data)) as store:
        found = prove_live.find(args) if args.data else prove_sources.find(
            args, store, unit=args.unit, settle_s=args.settle)
        train = data.read(args.train) if args.train else ()
        notes = overlap.require_none_trained_on(found.chosen.pairs, train)
        if args.adapter is not None:
            overlap.require_newer_than(found.chosen.pairs, args.adapter)
        return _proven(args, replace(found, notes=(*found.notes, *notes)), store, train)


def _proven(args: argparse.Namespace, found: PairSource, store: TrafficStore | None,
            train: Sequence[EvalExample]) -> int:
    pairs = found.chosen.pairs
    if store is not None:
        open_tests.require_unexported(store, found.task, {pair.id for pair in pairs})
    scorer = scorer_of(args.score, args.scorer, pairs)
    scored = scoring.score(pairs, args.rung, scorer, args.figure, args.draw or scoring.JUDGED_SHARE)
    around = document.about(found.task, found.source, pairs, left_out=found.chosen.left_out,
                            changes=found.chosen.changes, unit=args.unit or "conversation", notes=found.notes)
    terms = prove_options.terms_of(args, args.candidate or 1)
    defined = candidates.definition(terms, scored, pairs, {
        "unit": args.unit, "settle_s": args.settle, "any_context": args.any_context})
    if store is not None:
        terms = replace(terms, candidate=candidates.number(store.ledger(), Shown(
            around.task, around.student, around.fingerprint, defined, around.since_s, around.until_s)))
    planned = plan(pairs, scored, terms, args.psi)
    if args.plan_only:
        _show(args, document.planned(around, planned, terms))
        return 0
    proof = prove(pairs, scored, terms, planned)
    beside, notes = _baselines(pairs, proof, scorer, train)
    notes += guards.not_asked(proof.guards, terms.margins) + _calibrated(store, around)
    report = document.proven(replace(around, notes=(*around.notes, *notes)), proof, beside)
    place = prove_certificate.keep(args, found, around, proof, store, report, defined)
    report["certificate"] = None if place is None else str(place)
    _show(args, report)
    if args.html is not None:
        html.write(args.html, proof_page.render(report))
        terminal.note(f"the page is in {args.html}")
    return STATUS[proof.verdict]


def _calibrated(store: TrafficStore | None, around: About) -> list[str]:
    """Whether these data are those on which a threshold for escalation was set: then they speak twice."""
    until_s = None if store is None else certificates.calibrated_until(store, around.task, around.student)
    if until_s is None or around.since_s is None or around.since_s >= until_s:
        return []
    time = document.time_words(until_s)
    return [f"brise cascade set its threshold on data up to {time}, some of which are in this window; --since {time} "
            "would keep them apart"]


def _show(args: argparse.Namespace, report: Mapping[str, Any]) -> None:
    if args.json:
        terminal.result(json.dumps(report, indent=2, allow_nan=False))
    else:
        prove_report.show(report)


def _baselines(pairs: Sequence[Pair], proof: Proof, scorer: Scorer | None,
               train: Sequence[EvalExample]) -> tuple[list[BaselineResult], list[str]]:
    classical, why_not = baselines.classical_if_it_can(pairs, proof.units, scorer, train, proof.terms.gate)
    found = baselines.itself(pairs, proof.units) + ([] if classical is None else [classical])
    return found, [] if why_not is None else [why_not]
