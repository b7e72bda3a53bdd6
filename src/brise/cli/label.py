"""`brise label`: a queue of questions in the terminal. Which answer is good, A or B? Nobody sees whose is which."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from brise.cli import chat_options, label_judge, prove_sources, terminal
from brise.errors import EvidenceError
from brise.evals.example import Answer
from brise.evidence import label_queue, scoring
from brise.evidence.label_book import Book, FileBook, StoreBook, Verdict
from brise.evidence.label_queue import Question
from brise.evidence.pairs import Pair
from brise.evidence.prove import Terms, plan
from brise.evidence.scoring import Scored
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
    label_judge.add_arguments(parser)
    parser.add_argument("--number", metavar="N", type=chat_options.count, help="end after N questions (default: all)")


def run(args: argparse.Namespace) -> int:
    prove_sources.check(args)
    endpoint = label_judge.check(args)
    if args.pairs is not None and args.judgements is None:
        raise EvidenceError("--pairs needs --judgements FILE, in which the verdicts are kept")
    with prove_sources.opened(args) as store:
        found = prove_sources.find(args, store, settle_s=0.0)
        pairs = found.chosen.pairs
        book: Book = FileBook(args.judgements) if store is None or args.pairs is not None else StoreBook(store, pairs)
        scored = scoring.score(pairs, "human", None)
        if endpoint is not None:
            label_judge.ask(args, endpoint, pairs, scored, book)
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


def _answer(answer: Answer) -> Text:
    if answer.error is not None:
        return Text("(no answer)", style="dim")
    calls = [f"{call.name}({call.arguments})" for call in answer.calls]
    return _plain("\n".join(part for part in (answer.text, *calls) if part) or "(an empty answer)")


def _plain(text: str) -> Text:
    """Without commands to the terminal, which an answer may hold."""
    shown = terminal.harmless(text)
    return Text(shown if len(shown) <= SHOWN_CHARACTERS else f"...{shown[-SHOWN_CHARACTERS:]}")


def _summary(pairs: Sequence[Pair], scored: Scored, verdicts: Sequence[Verdict]) -> None:
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
