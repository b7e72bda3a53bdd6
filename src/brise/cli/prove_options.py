"""The options of `brise prove`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from brise.cli import chat_options, number_types, prove_live, prove_sources
from brise.cli.number_types import Within
from brise.errors import EvidenceError
from brise.evals import scorers
from brise.prove.guards import REFUSAL, Margins
from brise.prove.prove import Terms
from brise.prove.scoring import JUDGED_SHARE, RUNGS

DAYS = 30
GUARDS = ("latency", "valid", "refusals", "length")
OPEN_SHARE = Within(0, 1, "a share over 0, under 1,", above=True, below=True)
SECONDS = Within(0, 86400, "a number of seconds from 0, under 86400,", below=True)
RATIO = Within(1, 1000, "a ratio over 1, under 1000,", above=True, below=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All of them."""
    prove_live.add_arguments(parser)
    _add_sources(parser)
    _add_student(parser)
    _add_promise(parser)
    _add_scoring(parser)
    _add_guards(parser)
    _add_output(parser)


def check(args: argparse.Namespace) -> None:
    """Refuses what contradicts itself."""
    prove_live.check(args)
    if args.candidate is not None and ((args.pairs is None and not args.data) or args.store is not None):
        raise EvidenceError("--candidate is for a log: the store's ledger knows which candidates were tried")
    if args.any_base and args.adapter is None:
        raise EvidenceError("--any-base needs --adapter FOLDER")
    if args.score is not None and args.scorer is not None:
        raise EvidenceError("--score and --scorer are both given, one is allowed")


def terms_of(args: argparse.Namespace, candidate: int) -> Terms:
    """The promise, from points to shares."""
    off = frozenset(args.without or ())
    margins = Margins(
        None if "latency" in off else args.p95_margin, None if "valid" in off else args.valid_margin / 100,
        None if "refusals" in off else args.refusal_margin / 100, None if "length" in off else args.length_ratio,
        refusal_words=args.refusal or REFUSAL)
    return Terms(args.delta / 100, args.alpha, candidate=candidate, power=args.power,
                 slice_delta=args.slice_delta / 100, dimensions=None if args.slice is None else tuple(args.slice),
                 margins=margins)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    prove_sources.add_arguments(parser)
    parser.add_argument("--unit", metavar="LABEL",
                        help="the label that tells independent units apart (default: the conversation)")
    parser.add_argument("--settle", metavar="SECONDS", type=SECONDS, default=prove_sources.SETTLE_S,
                        help="of captured conversations only what was asked in their first SECONDS counts, and only "
                             "when these are over: so no later look changes an earlier one (default: 3600)")


def _add_student(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL",
                        help="what the small model is: a name that `brise models` lists, a .gguf file, or a folder. "
                             "Its digests go into the certificate, and with DATA it answers")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="and its adapter: no pair may be older than it")
    parser.add_argument("--any-base", action="store_true",
                        help="take the adapter although its lineage names another model")


def _add_promise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delta", metavar="POINTS", type=number_types.percent, default=2.0,
                        help="points that the small model may be worse (default: 2)")
    parser.add_argument("--alpha", metavar="SHARE", type=OPEN_SHARE, default=0.05,
                        help="how often a worse one may be promoted, over all candidates (default: 0.05)")
    parser.add_argument("--power", metavar="SHARE", type=OPEN_SHARE, default=0.9,
                        help="how surely the plan wants to show an equal one (default: 0.9)")
    parser.add_argument("--psi", metavar="SHARE", type=OPEN_SHARE,
                        help="for the plan: the share of answers that will differ (default: as in the data)")
    parser.add_argument("--candidate", metavar="K", type=chat_options.count,
                        help="this is the K-th small model that is tried on these data (default: 1)")
    parser.add_argument("--slice", metavar="LABEL", action="append",
                        help="prove each value of this label by itself, or of length or writing; may be given several "
                             "times (default: every label of 2 to 20 values, length and writing)")
    parser.add_argument("--slice-delta", metavar="POINTS", type=number_types.percent, default=5.0,
                        help="points that it may be worse in a part (default: 5)")
    parser.add_argument("--plan-only", action="store_true", help="say what it takes, and look at nothing")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    names = tuple(name for name in scorers.built_in(()) if name != "perplexity")
    parser.add_argument("--rung", choices=RUNGS, metavar="NAME",
                        help=f"who says what an answer is worth: {', '.join(RUNGS)} (default: the best one that speaks "
                             "of all pairs that differ)")
    prove_sources.add_draw(parser, "with the rung judge: the share of its opinions that `brise label --draw` asked "
                                   f"people about (default: {JUDGED_SHARE:g})")
    parser.add_argument("--score", choices=names, metavar="NAME",
                        help=f"how answers are compared with references: {', '.join(names)} (default: by meta.task)")
    parser.add_argument("--scorer", metavar="FILE.py:FUNCTION",
                        help="compare with your own function, which gets (example, answer); its file is run")
    parser.add_argument("--figure", metavar="NAME", help="the figure of the score that counts, such as slot_f1")
    parser.add_argument("--train", metavar="FILE", action="append", type=Path,
                        help="what the small model was tuned on: no pair may be of it, and the TF-IDF baseline learns "
                             "from it; may be given several times")


def _add_guards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--p95-margin", metavar="SECONDS", type=SECONDS, default=1.0,
                        help="how much slower the slowest twentieth may be (default: 1)")
    parser.add_argument("--valid-margin", metavar="POINTS", type=number_types.percent, default=2.0,
                        help="points that the share of valid answers may be lower (default: 2)")
    parser.add_argument("--refusal-margin", metavar="POINTS", type=number_types.percent, default=2.0,
                        help="points that the share of refusals may be higher (default: 2)")
    parser.add_argument("--refusal", metavar="PATTERN", type=_pattern,
                        help="regular expression of a refusal's first words (default: usual ones of five languages)")
    parser.add_argument("--length-ratio", metavar="R", type=RATIO, default=3.0,
                        help="four of five answers must be within 1/R to R times the large one's length (default: 3)")
    parser.add_argument("--without", choices=GUARDS, action="append", metavar="NAME",
                        help=f"leave one out: {', '.join(GUARDS)}; may be given several times")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the report as a page, too")
    parser.add_argument("--certificate", metavar="FILE", type=Path,
                        help="where the certificate of a promotion is written (default: beside the store)")
    parser.add_argument("--expires", metavar="DAYS", type=chat_options.count, default=DAYS,
                        help=f"how long it is good for (default: {DAYS})")
    parser.add_argument("--verify", metavar="CERTIFICATE", type=Path,
                        help="replay a certificate instead, and say where it parts from the data")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r}: no regular expression: {error}") from None
    return text
