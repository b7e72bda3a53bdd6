"""`brise cascade` certifies which answers of a small model may be kept, with a guarantee about the kept ones."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise.cli import number_types, pair_options, terminal
from brise.dialects import answers
from brise.prove import cascade as use_case
from brise.prove.calibrate import Calibration
from brise.prove.cascade import CascadeOptions, CascadeResult
from brise.stats.labels import JUDGEMENT_SOURCES
from brise.stats.thresholds import RiskClaim
from brise.switch.state import AUDIT

IMPOSSIBLE = 3  # the exit status, as of a proof that ends with "not good enough"
LABELS = ("auto", *JUDGEMENT_SOURCES, "fidelity")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    claim = RiskClaim()
    parser = subparsers.add_parser(
        "cascade", help="certify which answers of a small model may be kept", allow_abbrev=False,
        description="From requests that both models answered, find the confidence from which on a small model's "
                    "answers may be kept: of those at most --risk are wrong, and this itself fails with --delta. Says "
                    "first what is possible at all. Exit status: 0 certified, 3 impossible on these data.",
        epilog="example: brise cascade calls --risk 5 --delta 5")
    parser.add_argument("task", metavar="TASK", help="the workflow, as requests name it")
    parser.add_argument("--small-model", "--candidate", metavar="MODEL",
                        help="the small model (default: the one that answered in the shadow)")
    parser.add_argument("--risk", metavar="PERCENT", type=number_types.percent, default=100 * claim.risk,
                        help=f"of kept answers that may be wrong (default: {100 * claim.risk:g})")
    parser.add_argument("--delta", metavar="PERCENT", type=number_types.percent, default=100 * claim.delta,
                        help="with which the guarantee itself may fail, by bad luck, over all interim analyses of "
                             "these data "
                             f"(default: {100 * claim.delta:g})")
    parser.add_argument("--label-source", "--labels", choices=LABELS, default="auto",
                        help="what tells wrong answers: a program's outcome, people, a judge, or that they differ from "
                             "the large model's (fidelity); auto: the best there is (default: auto)")
    parser.add_argument("--score", choices=answers.SCORERS, default="auto",
                        help="how answers are compared: calls, JSON, classes or texts; auto: as they look "
                             "(default: auto)")
    parser.add_argument("--signal", metavar="NAME", action="append",
                        help="use this signal only; may be repeated (default: the best one, or all if together "
                             "they are better)")
    parser.add_argument("--since", metavar="TIME", type=pair_options.moment,
                        help="only what was asked from then on: 2026-01-31, or with T and a time of day (UTC)")
    parser.add_argument("--until", metavar="TIME", type=pair_options.moment, help="only what was asked before")
    parser.add_argument("--dry-run", action="store_true",
                        help="write no rule into the ledger; it is an interim analysis all the same")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--store", metavar="PLACE",
                        help="path or postgresql:// URL of the traffic (default: in BRISE_HOME)")


def run(args: argparse.Namespace) -> int:
    result = use_case.run(CascadeOptions(
        args.task, args.small_model, RiskClaim(args.risk / 100, args.delta / 100), args.label_source, args.score,
        None if args.signal is None else tuple(args.signal), args.since, args.until, args.dry_run, args.store))
    if args.json:
        terminal.result(json.dumps(result.to_json(), indent=2))
    else:
        _show(result, is_kept=not args.dry_run)
    return 0 if result.calibration.rule is not None else IMPOSSIBLE


def _show(result: CascadeResult, *, is_kept: bool) -> None:
    rows, found, analysis = result.rows, result.calibration, result.analysis
    console = Console(width=110, highlight=False)

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    say(f"{found.draft.task}: {rows.candidate} beside the large model, {len(rows.rows)} answers")
    say(f"wrong is: {_WRONG[rows.label_source]}")
    for number, reason in rows.left_out:
        say(f"left out: {number} answers: {reason}")
    say(f"interim analysis {analysis.number} of these data: it may fail with {100 * analysis.share.delta:.2g} %, "
        f"all analyses of them together with {100 * analysis.claim.delta:g} %")
    console.print(_feasible(found))
    terms = ", ".join(f"{term.signal} ({term.weight:+.2f})" for term in found.draft.terms)
    say(f"confidence from: {terms}; vetoed by: {', '.join(found.draft.vetoes)}")
    if found.rule is None:
        say(f"this guarantee is impossible on your data: {found.why}")
        return
    rule = found.rule
    say(f"certified: of answers with a confidence of {rule.threshold:.4f} or more at most "
        f"{_percents(analysis.claim.risk)} are wrong, with {100 * (1 - analysis.share.delta):.4g} % certainty; "
        f"{_percents(rule.kept)} of answers are kept ({rule.units} answers of {rule.clusters} conversations, "
        f"{rule.method})")
    saving = "" if found.saving_usd is None else f", ${found.saving_usd:.2f} of the cost of these"
    say(f"saving: about {_percents(rule.kept * (1 - AUDIT))} of the large model's requests, audits of "
        f"{_percents(AUDIT)} included{saving}")
    say(f"rule {rule.digest[:12]} is in the ledger; brise switch {rule.task} --small-model {rule.candidate} uses it"
        if is_kept else "not written (--dry-run)")


_WRONG: Mapping[str, str] = {"fidelity": "an answer that differs from the large model's (fidelity, not correctness)",
          "outcome": "what a program found wrong; answers that are the large model's count as right",
          "human": "what people found wrong; answers that are the large model's count as right",
          "judge": "what a judge found wrong, uncorrected; answers that are the large model's count as right"}


def _feasible(found: Calibration) -> Table:
    """What can be expected, before anything is certified."""
    what, table = found.feasibility, Table(title=f"from the {found.feasibility.rows} answers that began first, "
                                                 f"{found.feasibility.units} conversations")
    table.add_column("before certifying")
    table.add_column("", justify="right")
    needed = "more than 100,000" if what.needed is None else f"about {what.needed.units:,}"
    for name, value in (("the small model's answers that are wrong", _percents(what.error)),
                        ("must escalate even with perfect ranking (the floor)", _percents(what.floor)),
                        ("how well confidence ranks (AUROC)", f"{what.auroc:.3f}"),
                        ("could be kept if all were known (oracle)", _percents(what.oracle)),
                        ("answers that must be kept, all right, to show anything", str(what.least)),
                        ("answers that are left to certify with", str(what.certifying)),
                        ("expected to be kept with them", _percents(what.expected)),
                        ("labelled answers for four fifths of the oracle", needed)):
        table.add_row(name, value)
    return table


def _percents(share: float) -> str:
    return f"{100 * share:.1f} %"
