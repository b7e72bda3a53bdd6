"""`brise cascade` certifies which answers of a small model may be kept, with a guarantee about the kept ones."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime

from brise.cli import chat_options, number_types, pair_options, terminal
from brise.cli.command_parser import examples
from brise.cli.progress_bar import TerminalWatcher
from brise.dialects import answers
from brise.prove import cascade as use_case
from brise.prove.calibrate import Calibration
from brise.prove.cascade import CascadeOptions, CascadeResult, InterimAnalysis
from brise.report import console, figures
from brise.report.document import Paragraph, Part, ReportTable
from brise.stats.clusters import PER, Weighting
from brise.stats.labels import JUDGEMENT_SOURCES
from brise.stats.thresholds import RiskClaim
from brise.switch.rule import Rule
from brise.switch.state import AUDIT

IMPOSSIBLE = 3  # the exit status, as of a proof that ends with "not good enough"
LABELS = ("auto", *JUDGEMENT_SOURCES, "fidelity")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    claim = RiskClaim()
    parser = subparsers.add_parser(
        "cascade", help="certify which answers of a small model may be kept", allow_abbrev=False,
        description="From requests that the large model answered, and a small one in the shadow, find the confidence "
                    "from which the small model's answers may be kept: of those at most --risk are wrong, and this "
                    "itself fails with --delta. First it says what is possible at all: the share that must escalate "
                    "even with perfect ranking, the number of labelled answers needed, and what they will keep. Then "
                    "it certifies, and writes the rule into the ledger, from where `brise switch` takes it. "
                    "docs/guides/switch.md says how. Exit status: 0 certified, 3 impossible on these data.",
        epilog=examples("brise cascade calls --risk 5 --plan", "brise cascade calls --risk 5 --delta 5"))
    parser.add_argument("task", metavar="TASK", help="the workflow, as requests name it")
    parser.add_argument("--small-model", "--candidate", metavar="MODEL",
                        help="the small model (default: the one that answered in the shadow)")
    parser.add_argument("--risk", metavar="PERCENT", type=number_types.percent, default=100 * claim.risk,
                        help=f"of kept answers that may be wrong (default: {100 * claim.risk:g})")
    parser.add_argument("--delta", metavar="PERCENT", type=number_types.percent, default=100 * claim.delta,
                        help="with which the guarantee itself may fail, by bad luck, over all interim analyses of "
                             f"these data (default: {100 * claim.delta:g})")
    parser.add_argument("--per", choices=PER, default="answer",
                        help="what weighs alike in the guarantee: each kept answer, or each conversation (default: "
                             "answer)")
    parser.add_argument("--rows-per-conversation", metavar="M", type=chat_options.count,
                        help="with --per answer: answers of a conversation that count, the first M, stated before the "
                             "data are seen (default: the power of two that covers the third that began first)")
    parser.add_argument("--label-source", "--labels", choices=LABELS, default="auto",
                        help="what tells wrong answers: outcome (a program), human, judge, or fidelity: that they "
                             "differ from the large model's; auto: the best of them that labels nine of ten answers "
                             "that differ (default: auto)")
    parser.add_argument("--score", choices=answers.SCORERS, default="auto",
                        help="how answers are compared: call, json, class, exact; auto: calls if there are some, JSON "
                             "if the large model's answer is some, else texts (default: auto)")
    parser.add_argument("--signal", metavar="NAME", action="append",
                        help="use this signal only; may be repeated (default: the best one, or all if together "
                             "they are better)")
    parser.add_argument("--since", metavar="TIME", type=pair_options.moment,
                        help="only requests from then on: 2026-01-31, or with T and a time of day (UTC)")
    parser.add_argument("--until", metavar="TIME", type=pair_options.moment, help="only requests before then")
    parser.add_argument("--plan", "--plan-only", dest="plan_only", action="store_true",
                        help="say only what is possible, and what an interim analysis will take of --delta; certify "
                             "nothing, write nothing: it costs nothing")
    parser.add_argument("--dry-run", action="store_true",
                        help="write no rule into the ledger; it is an interim analysis all the same")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument("--store", metavar="PLACE",
                        help="path or postgresql:// URL of the traffic (default: in BRISE_HOME)")


def run(args: argparse.Namespace) -> int:
    result = use_case.run(CascadeOptions(
        args.task, args.small_model, RiskClaim(args.risk / 100, args.delta / 100), args.label_source, args.score,
        None if args.signal is None else tuple(args.signal), args.since, args.until, args.dry_run,
        args.plan_only, args.store, Weighting(args.per, args.rows_per_conversation)), TerminalWatcher())
    if args.json:
        terminal.result(json.dumps(result.to_json(), indent=2))
    else:
        _show(result, is_kept=not args.dry_run)
    if result.is_plan:
        terminal.note(f"next: {_certifying(args)}")
        return 0
    return 0 if result.calibration.rule is not None else IMPOSSIBLE


def _show(result: CascadeResult, *, is_kept: bool) -> None:
    rows, found, analysis = result.rows, result.calibration, result.analysis
    parts: list[Part] = [
        Paragraph(f"{found.draft.task}: {rows.candidate} beside the large model, {len(rows.rows)} answers"),
        Paragraph(f"wrong is: {_WRONG[rows.label_source]}"),
        *([Paragraph(f"{rows.unlabelled} answers differ and have no label: they count as wrong (brise label asks for "
                     "some)")] if rows.unlabelled else []),
        *(Paragraph(f"left out: {number} answers: {reason}") for number, reason in rows.left_out),
        Paragraph(analysis.words if result.is_plan else
                  f"interim analysis {analysis.number} of these data: it may fail with "
                  f"{100 * analysis.share.delta:.2g} %, all analyses of them together with "
                  f"{100 * analysis.claim.delta:g} %"),
        _feasible(found)]
    terms = ", ".join(f"{term.signal} ({term.weight:+.2f})" for term in found.draft.terms)
    parts.append(Paragraph(f"confidence from: {terms}; vetoed by: {', '.join(found.draft.vetoes)}"))
    if found.missing:
        parts.append(Paragraph(f"without the signals {', '.join(found.missing)}: not all answers have them"))
    if result.is_plan:
        parts.append(Paragraph(f"as it looks, this guarantee is impossible on your data: {found.why}" if found.why else
                               "nothing was certified, and nothing was written: this plan costs nothing"))
    elif found.rule is None:
        parts.append(Paragraph(f"this guarantee is impossible on your data: {found.why}"))
    else:
        parts += _certified(found, found.rule, analysis, is_kept=is_kept)
    console.show_parts(parts)


def _certifying(args: argparse.Namespace) -> str:
    """The command that certifies what this one planned."""
    asked = {"--small-model": args.small_model, "--label-source": args.label_source, "--score": args.score,
             "--store": args.store, "--since": args.since, "--until": args.until,
             "--per": None if args.per == "answer" else args.per, "--rows-per-conversation": args.rows_per_conversation}
    words = ["brise", "cascade", args.task, "--risk", f"{args.risk:g}", "--delta", f"{args.delta:g}"]
    for name, value in asked.items():
        if value not in (None, "auto"):
            words += [name, _time(value) if isinstance(value, float) else str(value)]
    return shlex.join([*words, *(word for name in args.signal or () for word in ("--signal", name))])


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _weights(found: Calibration) -> str:
    """What weighs alike in the guarantee."""
    what = found.feasibility
    if what.most_rows is None:
        return "each conversation weighs alike, whatever its number of answers"
    return f"each answer weighs alike; of a conversation the first {what.most_rows} count, {what.cut} are cut"


def _certified(found: Calibration, rule: Rule, analysis: InterimAnalysis, *, is_kept: bool) -> list[Part]:
    saving = "" if found.saving_usd is None else f", ${found.saving_usd:.2f} of the cost of these"
    return [
        Paragraph(f"certified: of answers with a confidence of {rule.threshold:.4f} or more at most "
                  f"{figures.percent(analysis.claim.risk)} are wrong, with {100 * (1 - analysis.share.delta):.4g} % "
                  f"certainty; {figures.percent(rule.kept)} of answers are kept ({rule.units} answers of "
                  f"{rule.clusters} conversations, {rule.method})"),
        Paragraph(f"the guarantee: {_weights(found)}"),
        Paragraph(f"saving: about {figures.percent(rule.kept * (1 - AUDIT))} of the large model's requests, audits of "
                  f"{figures.percent(AUDIT)} included{saving}"),
        Paragraph(f"rule {rule.digest[:12]} is in the ledger; brise switch {rule.task} --small-model {rule.candidate} "
                  "uses it" if is_kept else "not written (--dry-run)")]


_WRONG: Mapping[str, str] = {"fidelity": "an answer that differs from the large model's (fidelity, not correctness)",
          "outcome": "what a program found wrong; answers that are the large model's count as right",
          "human": "what people found wrong; answers that are the large model's count as right",
          "judge": "what a judge found wrong, uncorrected; answers that are the large model's count as right"}


def _feasible(found: Calibration) -> ReportTable:
    """What can be expected, before anything is certified."""
    what = found.feasibility
    needed = "more than 100,000" if what.needed is None else f"about {what.needed.units:,}"
    return ReportTable(("before certifying", ""), [
        ("the small model's answers that are wrong", figures.percent(what.error)),
        ("must escalate even with perfect ranking (the floor)", figures.percent(what.floor)),
        ("how well confidence ranks (AUROC)", f"{what.auroc:.3f}"),
        ("could be kept if all were known (oracle)", figures.percent(what.oracle)),
        ("answers that must be kept, all right, to show anything", str(what.least)),
        ("answers that are left to certify with", str(what.certifying)),
        ("expected to be kept with them", figures.percent(what.expected)),
        ("labelled answers for four fifths of the oracle", needed)], (1,),
        f"from the {what.rows} answers that began first, {what.units} conversations")
