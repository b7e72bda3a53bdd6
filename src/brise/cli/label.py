"""`brise label` asks in the terminal which of two answers is good, A or B. Nobody sees whose is which."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from brise.cli import chat_options, pair_options, terminal
from brise.cli.command_parser import examples
from brise.cli.progress_bar import TerminalWatcher
from brise.evals.example import EvalAnswer
from brise.prove import label, label_queue
from brise.prove.label import PARALLEL, JudgeOptions, LabelOptions, LabelSession, LabelSummary
from brise.prove.label_queue import Question
from brise.text.conversation import plain_text

KEYS: Mapping[str, str] = {"a": "a", "b": "b", "both": "both", "+": "both", "neither": "neither", "-": "neither"}
SHOWN_TURNS, SHOWN_CHARACTERS = 4, 6000  # of a conversation: its last messages, and the end of each


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "label", help="say which of two answers is good", allow_abbrev=False,
        description="Look at the pairs of answers that differ, and say which is good: a, b, both (or +), neither (or "
                    "-), skip or quit. Only what differs is shown, nobody sees which model wrote what, and one in ten "
                    "pairs comes twice, to see how steady the verdicts are. The next call continues where the last one "
                    "ended. Verdicts are labels in the store, or lines of --judgements; `brise prove` takes them from "
                    "there. With --judge-endpoint a model is asked instead; `brise prove --label-source judge` "
                    "corrects its opinions by people's.",
        epilog=examples("brise label --task tickets",
                        "brise label --pairs log.jsonl --judgements verdicts.jsonl --number 20"))
    pair_options.add_arguments(parser)
    pair_options.add_draw(parser, "ask about a random SHARE of the pairs that differ, to correct a judge's opinions")
    parser.add_argument("--who", metavar="NAME", default="person", help="who judges (default: person)")
    _add_judge(parser)
    parser.add_argument("--number", metavar="N", type=chat_options.count, help="end after N questions (default: all)")


def run(args: argparse.Namespace) -> int:
    options = LabelOptions(pair_options.options_of(args), args.draw, args.who, args.number, JudgeOptions(
        args.judge_endpoint, args.judge_model, args.judge_key_env, args.rubric, args.send_traffic, args.parallel))
    if label.check(options) is not None:
        judged = label.ask_judge(options, TerminalWatcher())
        terminal.result(f"{judged.verdicts} verdicts of {judged.who}; {judged.still_open} pairs stay open: no clear "
                        "answer")
        return 0
    with label.session(options) as session:
        number = len(session.questions)
        terminal.note(f"{number} questions; a, b, both, neither, skip or quit, then Enter")
        given = _ask(session, session.questions[:args.number])
        terminal.result(f"{given} verdicts given, {number - given} questions are left")
        _summary(session.summary())
    return 0


def _ask(session: LabelSession, questions: Sequence[Question]) -> int:
    """Asks until the questions end, somebody quits, or nobody answers any more."""
    console, given = Console(highlight=False), 0
    for number, question in enumerate(questions, 1):
        _show(console, question, f"{number} of {len(questions)}")
        choice = _choice()
        if choice == "quit":
            break
        if choice == "skip":
            continue
        session.answer(question, next(known for known in label_queue.CHOICES if known == choice))
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


def _summary(found: LabelSummary) -> None:
    terminal.result(f"{found.judged} of {found.differing} pairs that differ are judged; the plan for 2 points needs "
                    f"about {found.needed}, {max(found.needed - found.judged, 0)} more")
    if found.steady is not None:
        terminal.result(f"{found.steady.pairs} were judged twice: the same verdict in {100 * found.steady.same:.0f} %, "
                        f"kappa {found.steady.kappa:.2f}")


def _add_judge(parser: argparse.ArgumentParser) -> None:
    """A model in place of a person."""
    parser.add_argument("--judge-endpoint", metavar="URL",
                        help="ask a model at an OpenAI-compatible endpoint, instead of a person; its labels have the "
                             "source judge")
    parser.add_argument("--judge-model", metavar="NAME", help="the model at the endpoint")
    parser.add_argument("--judge-key-env", metavar="VARIABLE", help="environment variable with the endpoint's key")
    parser.add_argument("--rubric", metavar="FILE", type=Path,
                        help="what the judge is told: it must reply with {\"good\": \"a\"}, b, both or neither "
                             "(default: what was asked, correctly and completely)")
    parser.add_argument("--send-traffic", action="store_true",
                        help="the endpoint is not on this machine, and may see requests and answers")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=PARALLEL,
                        help=f"pairs that the judge is asked about at one time (default: {PARALLEL})")
