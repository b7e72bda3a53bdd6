"""`brise prove`: may the small model take over? A verdict that holds at every moment somebody looks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from brise.cli import prove_options, prove_report, terminal
from brise.evals import classify, custom, data, scorers
from brise.evals.example import Example
from brise.evals.scorers import Scorer
from brise.evidence import baselines, document, pairs_log, scoring
from brise.evidence.baselines import Baseline
from brise.evidence.document import About
from brise.evidence.overlap import require_none_trained_on
from brise.evidence.pairs import Pair
from brise.evidence.prove import Proof, plan, prove
from brise.evidence.window import choose

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
    chosen = choose(pairs_log.read(args.pairs, args.unit), args.since, args.until, any_context=args.any_context)
    train = data.read(args.train) if args.train else ()
    require_none_trained_on(chosen.pairs, train)
    scorer = _scorer(args, chosen.pairs)
    scored = scoring.score(chosen.pairs, args.rung, scorer, args.figure)
    terms = prove_options.terms_of(args, args.candidate or 1)
    around = document.about(args.task or args.pairs.stem, str(args.pairs), chosen.pairs, left_out=chosen.left_out,
                            changes=chosen.changes, unit=args.unit or "conversation")
    planned = plan(chosen.pairs, scored, terms, args.psi)
    if args.plan_only:
        return _show(args, document.planned(around, planned, terms))
    proof = prove(chosen.pairs, scored, terms, planned)
    beside, notes = _baselines(chosen.pairs, proof, scorer, train)
    found = document.proven(_noted(around, notes), proof, beside)
    _show(args, found)
    return STATUS[proof.verdict]


def _show(args: argparse.Namespace, found: Mapping[str, Any]) -> int:
    if args.json:
        terminal.result(json.dumps(found, indent=2, allow_nan=False))
    else:
        prove_report.show(found)
    return 0


def _scorer(args: argparse.Namespace, pairs: Sequence[Pair]) -> Scorer | None:
    """The one that was asked for, or the one for these rows; none where no row has a reference."""
    if args.scorer is not None:
        return custom.load(args.scorer)
    examples = [pair.example(pair.reference) for pair in pairs if pair.reference is not None]
    if not examples and args.score is None:
        return None
    name = args.score or scorers.pick(examples)[0]
    return scorers.built_in(classify.labels_of(examples))[name]


def _baselines(pairs: Sequence[Pair], proof: Proof, scorer: Scorer | None,
               train: Sequence[Example]) -> tuple[list[Baseline], list[str]]:
    itself = baselines.itself(pairs, proof.units)
    classical, why_not = baselines.classical_if_it_can(pairs, proof.units, scorer, train, proof.terms.gate)
    return [found for found in (itself, classical) if found is not None], [] if why_not is None else [why_not]


def _noted(around: About, notes: Sequence[str]) -> About:
    return replace(around, notes=(*around.notes, *notes))
