"""`brise label`: a queue of questions in the terminal. Which answer is good, A or B? Nobody sees whose is which."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from brise import settings
from brise.cli import chat_options, prove_sources, terminal
from brise.errors import EvidenceError
from brise.evals.answerer import AnswerSettings
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.evals.example import EvalAnswer
from brise.prove import judge as judges
from brise.prove import label_queue, scoring
from brise.prove.label_book import Book, FileBook, StoreBook, Verdict
from brise.prove.label_queue import Question
from brise.prove.pairs import Pair
from brise.prove.prove import Terms, plan
from brise.prove.scoring import PairScores
from brise.text.conversation import plain_text

KEYS: Mapping[str, str] = {"a": "a", "b": "b", "both": "both", "+": "both", "neither": "neither", "-": "neither"}
SHOWN_TURNS, SHOWN_CHARACTERS = 4, 6000  # of a conversation: its last messages, and the end of each


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "label", help="say which of two answers is good", allow_abbrev=False,
        description="Look at the pairs of answers that differ, and say which is good: a, b, both (or +), neither (or "
                    "-), skip or quit. Nobody sees which model wrote what; one in ten pairs comes twice.",
        epilog="example: brise label --task tickets")
    prove_sources.add_arguments(parser)
    prove_sources.add_draw(parser, "ask about a random SHARE of the pairs that differ, to correct a judge's opinions")
    parser.add_argument("--who", metavar="NAME", default="person", help="who judges (default: person)")
    add_arguments(parser)
    parser.add_argument("--number", metavar="N", type=chat_options.count, help="end after N questions (default: all)")


def run(args: argparse.Namespace) -> int:
    prove_sources.check(args)
    endpoint = check(args)
    if args.pairs is not None and args.judgements is None:
        raise EvidenceError("--pairs needs --judgements FILE, in which the verdicts are kept")
    with prove_sources.opened(args) as store:
        found = prove_sources.find(args, store, settle_s=0.0)
        pairs = found.chosen.pairs
        book: Book = FileBook(args.judgements) if store is None or args.pairs is not None else StoreBook(store, pairs)
        scored = scoring.score(pairs, "human", None)
        if endpoint is not None:
            ask(args, endpoint, pairs, scored, book)
            return 0
        questions = [question for question in label_queue.queue(pairs, scored, book.verdicts())
                     if args.draw is None or scoring.is_drawn(question.pair, args.draw)]
        terminal.note(f"{len(questions)} questions; a, b, both, neither, skip or quit, then Enter")
        given = _ask(questions[:args.number], book, args.who)
        terminal.result(f"{given} verdicts given, {len(questions) - given} questions are left")
        _summary(pairs, scored, book.verdicts())
    return 0


def _ask(questions: Sequence[Question], book: Book, who: str) -> int:
    """Asks until the questions end, somebody quits, or nobody answers any more."""
    console, given = Console(highlight=False), 0
    for number, question in enumerate(questions, 1):
        _show(console, question, f"{number} of {len(questions)}")
        choice = _choice()
        if choice == "quit":
            break
        if choice == "skip":
            continue
        small, large = question.scores(next(known for known in label_queue.CHOICES if known == choice))
        book.write(question.pair, Verdict(question.pair.id, small, large, who, time.time(), question.is_second))
        given += 1
    return given


def _choice() -> str:
    while True:
        terminal.stream("which is good? ")
        line = sys.stdin.readline()
        if not line:
            return "quit"
        word = line.strip().lower()
        if word in ("skip", "s", "quit", "q"):
            return {"s": "skip", "q": "quit"}.get(word, word)
        if word in KEYS:
            return KEYS[word]
        terminal.note(f"{word[:20]!r}: a, b, both, neither, skip or quit is allowed")


def _show(console: Console, question: Question, title: str) -> None:
    parts = [Text.assemble((f"{message['role']}: ", "bold"), _plain(plain_text(message.get("content"))))
             for message in question.pair.prompt[-SHOWN_TURNS:]]
    left_out = len(question.pair.prompt) - len(parts)
    if left_out > 0:
        parts.insert(0, Text(f"({left_out} earlier messages)", style="dim"))
    console.print(Panel(Group(*parts), title=title, title_align="left"))
    width = max((console.width - 1) // 2, 20)
    console.print(Columns([Panel(_answer(answer), title=name, width=width)
                           for name, answer in (("A", question.a), ("B", question.b))], padding=(0, 0)))


def _answer(answer: EvalAnswer) -> Text:
    if answer.error is not None:
        return Text("(no answer)", style="dim")
    calls = [f"{call.name}({call.arguments})" for call in answer.calls]
    return _plain("\n".join(part for part in (answer.text, *calls) if part) or "(an empty answer)")


def _plain(text: str) -> Text:
    """Without commands to the terminal, which an answer may hold."""
    shown = terminal.harmless(text)
    return Text(shown if len(shown) <= SHOWN_CHARACTERS else f"...{shown[-SHOWN_CHARACTERS:]}")


def _summary(pairs: Sequence[Pair], scored: PairScores, verdicts: Sequence[Verdict]) -> None:
    first = {verdict.pair for verdict in verdicts if not verdict.is_second}
    differing = [pair.id for pair, differs in zip(pairs, scored.differs, strict=True) if differs]
    needed = plan(pairs, scored, Terms()).labels
    judged = sum(id in first for id in differing)
    terminal.result(f"{judged} of {len(differing)} pairs that differ are judged; the plan for 2 points needs about "
                    f"{needed}, {max(needed - judged, 0)} more")
    steady = label_queue.steadiness(verdicts)
    if steady is not None:
        terminal.result(f"{steady.pairs} were judged twice: the same verdict in {100 * steady.same:.0f} %, kappa "
                        f"{steady.kappa:.2f}")


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


def ask(args: argparse.Namespace, endpoint: Endpoint, pairs: Sequence[Pair], scored: PairScores, book: Book) -> None:
    """Every pair without a word of this judge; each verdict is kept as it comes."""
    answerer = EndpointAnswerer(endpoint, AnswerSettings(judges.MOST_TOKENS), parallel=args.parallel)
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
