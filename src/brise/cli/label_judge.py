"""`brise label --judge-endpoint`: a model is asked instead of a person."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from brise import settings
from brise.cli import chat_options, terminal
from brise.errors import EvidenceError
from brise.evals.answerer import Asked
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.evidence import judge as judges
from brise.evidence.label_book import Book
from brise.evidence.pairs import Pair
from brise.evidence.scoring import Scored

PARALLEL = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who judges, by what, and how."""
    parser.add_argument("--judge-endpoint", metavar="URL",
                        help="ask a model at an OpenAI-compatible endpoint, instead of a person; its labels are of the "
                             "rung judge")
    parser.add_argument("--judge-model", metavar="NAME", help="the model at the endpoint")
    parser.add_argument("--judge-key-env", metavar="VARIABLE", help="environment variable with the endpoint's key")
    parser.add_argument("--rubric", metavar="FILE", type=Path,
                        help="what the judge is told: it must reply with {\"good\": \"a\"}, b, both or neither "
                             "(default: what was asked, correctly and completely)")
    parser.add_argument("--send-traffic", action="store_true",
                        help="the endpoint is not on this machine, and may see requests and answers")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=PARALLEL,
                        help=f"pairs that the judge looks at at one time (default: {PARALLEL})")


def check(args: argparse.Namespace) -> Endpoint | None:
    """None: a person is asked."""
    if args.judge_endpoint is None:
        given = next((name for name in ("judge_model", "judge_key_env", "rubric", "send_traffic") if vars(args)[name]),
                     None)
        if given is not None:
            raise EvidenceError(f"--{given.replace('_', '-')} is for a judge", hint="--judge-endpoint URL")
        return None
    if args.judge_model is None:
        raise EvidenceError("--judge-endpoint needs --judge-model NAME")
    if args.draw is not None:
        raise EvidenceError("--draw is for people, a judge looks at every pair that differs")
    key = None if args.judge_key_env is None else settings.secret(args.judge_key_env)
    endpoint = Endpoint(args.judge_endpoint, args.judge_model, key)
    if not endpoint.is_here and not args.send_traffic:
        raise EvidenceError(f"the judge at {args.judge_endpoint} is not on this machine, and would see requests and "
                            "answers", hint="--send-traffic allows it; brise serve MODEL is one on this machine")
    return endpoint


def ask(args: argparse.Namespace, endpoint: Endpoint, pairs: Sequence[Pair], scored: Scored, book: Book) -> None:
    """Every pair without a word of this judge; each verdict is kept as it comes."""
    answerer = EndpointAnswerer(endpoint, Asked(judges.MOST_TOKENS), parallel=args.parallel)
    judge = judges.Judge(answerer) if args.rubric is None else judges.Judge(answerer, _text(args.rubric))
    waiting = judges.open_pairs(pairs, scored, book.verdicts("judge"), judge.who)[:args.number]
    terminal.note(f"{len(waiting)} pairs, each twice; requests and answers go to {endpoint.url}")
    given = 0
    try:
        for pair, verdict in judges.ask_all(judge, waiting):
            if verdict is not None:
                book.write(pair, verdict)
                given += 1
    finally:
        answerer.close()
    terminal.result(f"{given} verdicts of {judge.who}; {len(waiting) - given} pairs stay open: no clear answer")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvidenceError(f"cannot read the rubric {str(path)!r}: {error}") from None
