"""`brise prove` tests whether the small model may take over. The verdict holds at every interim analysis."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from brise.cli import chat_options, number_types, pair_options, terminal
from brise.cli.command_parser import examples
from brise.cli.number_types import Within
from brise.cli.progress_bar import TerminalWatcher
from brise.errors import CertificateError, UnsupportedError
from brise.evals import scorers
from brise.prove import options as given
from brise.prove import run as use_case
from brise.prove import verify
from brise.prove.guards import REFUSAL, Margins
from brise.prove.options import LiveOptions, ProveOptions, ScoringOptions, SmallModelOptions
from brise.prove.proof import Terms
from brise.prove.scoring import JUDGED_SHARE
from brise.prove.verify import VerifyOptions
from brise.report import console, html
from brise.report.proof_document import plan_document, proof_document
from brise.stats.clusters import PER, Weighting
from brise.stats.labels import LABEL_SOURCES

STATUS: Mapping[str, int] = MappingProxyType({"promote": 0, "not good enough": 3, "undecided": 4})
UNKNOWN_SIGNER, NO_CERTIFICATE = 1, 2  # exit status of --verify
GUARDS = ("latency", "valid", "refusals", "length")
OPEN_SHARE = Within(0, 1, "a share over 0, under 1,", above=True, below=True)
SECONDS = Within(0, 86400, "a number of seconds from 0, under 86400,", below=True)
RATIO = Within(1, 1000, "a ratio over 1, under 1000,", above=True, below=True)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "prove", help="test whether the small model may take over", allow_abbrev=False,
        description="Compare the answers of a small and a large model to the same requests, and say whether the small "
                    "one may take over, by a test that allows an interim analysis every day. docs/guides/prove.md says "
                    "what it guarantees, and how. Exit status: 0 promote, 3 not good enough, 4 undecided.",
        epilog=examples("brise prove --task tickets",
                        "brise prove --pairs log.jsonl --plan-only",
                        "brise prove --pairs log.jsonl --margin 2 --html proof.html",
                        "brise prove valid.jsonl --model smollm2 --adapter ./calls --large-endpoint "
                        "https://api.example.com/v1 --large-name big",
                        "brise prove --verify certificate.json"))
    _add_live(parser)
    pair_options.add_arguments(parser)
    _add_clusters(parser)
    _add_small_model(parser)
    _add_claim(parser)
    _add_scoring(parser)
    _add_guards(parser)
    _add_output(parser)


def run(args: argparse.Namespace) -> int:
    options = options_of(args)
    if args.verify is not None:
        given.check(options)
        return _verified(VerifyOptions(args.verify, options.pairs, args.key), as_json=args.json)
    if args.key is not None:
        raise UnsupportedError("--key needs --verify CERTIFICATE")
    result = use_case.run(options, TerminalWatcher())
    if result.certificate_path is not None:
        terminal.note(f"the certificate is in {result.certificate_path}, good for {options.expires_days} days")
    if args.json:
        terminal.result(json.dumps(result.document, indent=2, allow_nan=False))
    else:
        console.show((plan_document if result.verdict is None else proof_document)(result.document))
    if result.verdict is None:
        return 0
    if args.html is not None:
        html.write(args.html, html.page(proof_document(result.document)))
        terminal.note(f"the page is in {args.html}")
    return STATUS[result.verdict]


def options_of(args: argparse.Namespace) -> ProveOptions:
    """What the command line says; points become shares."""
    return ProveOptions(
        pair_options.options_of(args, cluster=args.cluster, settle_s=args.settle),
        LiveOptions(tuple(args.data), args.endpoint, args.name, args.key_env, args.large_endpoint, args.large_name,
                    args.large_key_env, args.reask, args.answers, tuple(args.conversation or ()), args.max_tokens,
                    args.parallel),
        SmallModelOptions(args.model, args.adapter, args.any_base),
        Terms(args.margin / 100, args.alpha, power=args.power, slice_delta=args.slice_margin / 100,
              dimensions=None if args.slice is None else tuple(args.slice), margins=_margins(args),
              weighting=Weighting(args.per, args.rows_per_conversation)),
        ScoringOptions(args.label_source, args.draw, args.score, args.scorer, args.figure), args.discordance,
        args.candidate, tuple(args.train or ()), args.certificate, args.expires, args.plan_only)


def _verified(options: VerifyOptions, *, as_json: bool) -> int:
    """Exit status 0 if nothing is wrong, 1 if only the signer is unknown, 2 for no certificate, 3 for a wrong one."""
    try:
        found = verify.verify(options)
    except CertificateError as error:
        terminal.note(f"brise: error: {error}")
        return NO_CERTIFICATE
    if as_json:
        terminal.result(json.dumps(found.to_json(), indent=2))
    else:
        terminal.result(f"claim: {found.claim}")
        for check in found.checks:
            sign = {True: "ok", False: "WRONG", None: "not looked at"}[check.passed]
            terminal.result(f"{check.name}: {sign}: {check.said}")
    if found.is_wrong:
        return 3
    return 0 if found.is_signer_known else UNKNOWN_SIGNER


def _margins(args: argparse.Namespace) -> Margins:
    off = frozenset(args.without or ())
    return Margins(
        None if "latency" in off else args.p95_margin, None if "valid" in off else args.valid_margin / 100,
        None if "refusals" in off else args.refusal_margin / 100, None if "length" in off else args.length_ratio,
        refusal_words=args.refusal or REFUSAL)


def _add_live(parser: argparse.ArgumentParser) -> None:
    """Two models that answer now."""
    parser.add_argument("data", metavar="DATA", nargs="*", default=[], type=Path,
                        help="or let both models answer now: files or folders of examples, as `brise eval` reads them")
    parser.add_argument("--endpoint", metavar="URL",
                        help="with DATA: the small model is at this server with OpenAI's API (or it is --model)")
    parser.add_argument("--name", metavar="NAME", help="the small model at --endpoint")
    parser.add_argument("--key-env", metavar="VARIABLE",
                        help="the environment variable that holds the key of --endpoint")
    parser.add_argument("--large-endpoint", "--teacher", metavar="URL",
                        help="with DATA: the server with OpenAI's API of the large model")
    parser.add_argument("--large-name", "--teacher-name", metavar="NAME", help="the large model there")
    parser.add_argument("--large-key-env", "--teacher-key-env", metavar="VARIABLE",
                        help="the environment variable that holds the key of --large-endpoint")
    parser.add_argument("--reask", action="store_true",
                        help="ask the large model everything twice, to see how far it agrees with itself")
    parser.add_argument("--answers", metavar="FOLDER", type=Path,
                        help="keep the answers there; the same command continues an interrupted run")
    parser.add_argument("--conversation", metavar="FIELD", action="append",
                        help="with DATA: field that tells conversations apart, such as meta.seed; may be given several "
                             "times")
    parser.add_argument("--max-tokens", metavar="N", type=chat_options.count, default=given.MAX_TOKENS,
                        help=f"with DATA: longest answer in tokens (default: {given.MAX_TOKENS})")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=given.PARALLEL,
                        help=f"with DATA: examples that are asked at one time (default: {given.PARALLEL})")


def _add_clusters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cluster", "--unit", metavar="LABEL",
                        help="the label that tells independent clusters apart (default: the conversation)")
    parser.add_argument("--settle", metavar="SECONDS", type=SECONDS, default=given.SETTLE_S,
                        help="of captured conversations only requests of their first SECONDS count, and only when "
                             "these are over, so that no later analysis changes an earlier one (default: 3600)")


def _add_small_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="MODEL",
                        help="what the small model is: a name that `brise models` lists, a .gguf file, or a folder. "
                             "Its digests go into the certificate, and with DATA it answers")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="and its adapter: no pair may be older than it")
    parser.add_argument("--any-base", action="store_true",
                        help="take the adapter although its lineage names another model")


def _add_claim(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--margin", "--delta", metavar="POINTS", type=number_types.percent, default=2.0,
                        help="points that the small model may be worse (default: 2)")
    parser.add_argument("--per", choices=PER, default="answer",
                        help="what weighs alike in the claim: each answer, so that a conversation of eight counts "
                             "eight times, or each conversation (default: answer)")
    parser.add_argument("--rows-per-conversation", metavar="M", type=chat_options.count,
                        help="with --per answer: answers of a conversation that count, the first M, stated before the "
                             "data are seen (default: the power of two that covers the first 30 conversations)")
    parser.add_argument("--alpha", metavar="SHARE", type=OPEN_SHARE, default=0.05,
                        help="how often a worse one may be promoted, over all candidates (default: 0.05)")
    parser.add_argument("--power", metavar="SHARE", type=OPEN_SHARE, default=0.9,
                        help="the probability with which the plan is to prove an equal one (default: 0.9)")
    parser.add_argument("--discordance", "--psi", metavar="SHARE", type=OPEN_SHARE,
                        help="for the plan: the share of answers that will differ (default: as in the data)")
    parser.add_argument("--candidate", metavar="K", type=chat_options.count,
                        help="this is the K-th small model that is tried on these data (default: 1)")
    parser.add_argument("--slice", metavar="LABEL", action="append",
                        help="prove each value of this label by itself, or of length or writing; may be given several "
                             "times (default: every label of 2 to 20 values, length and writing)")
    parser.add_argument("--slice-margin", "--slice-delta", metavar="POINTS", type=number_types.percent, default=5.0,
                        help="points that it may be worse in a slice (default: 5)")
    parser.add_argument("--plan", "--plan-only", dest="plan_only", action="store_true",
                        help="print the sample size and what an analysis will take of alpha; compare nothing, write "
                             "nothing")


def _add_scoring(parser: argparse.ArgumentParser) -> None:
    names = tuple(name for name in scorers.built_in(()) if name != "perplexity")
    parser.add_argument("--label-source", "--rung", choices=LABEL_SOURCES, metavar="NAME",
                        help=f"who scores answers: {', '.join(LABEL_SOURCES)} (default: the best "
                             "one that labels all pairs that differ)")
    pair_options.add_draw(parser, "with the label source judge: the share of its opinions that `brise label --draw` "
                                  f"asked people about (default: {JUDGED_SHARE:g})")
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
                        help="how much slower the slowest twentieth of answers may be (default: 1)")
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
    parser.add_argument("--expires", metavar="DAYS", type=chat_options.count, default=given.EXPIRES_DAYS,
                        help=f"how long it is good for (default: {given.EXPIRES_DAYS})")
    parser.add_argument("--verify", metavar="CERTIFICATE", type=Path,
                        help="replay a certificate instead, and say where it parts from the data")
    parser.add_argument("--key", metavar="KEY", type=pair_options.public_key,
                        help="with --verify: the public key that must have signed it: 64 hexadecimal digits, a file, "
                             "or NAME of NAME.pub in BRISE_HOME/gateway/keys (default: own, this machine's)")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r}: no regular expression: {error}") from None
    return text
