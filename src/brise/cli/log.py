"""`brise log`: captured traffic: look, search, label, export, import, forget."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import get_args

from brise import settings
from brise.cli import log_options, log_show, number_types, terminal
from brise.cli.log_export import add_export, export
from brise.errors import EvidenceError, StoreError
from brise.traffic.conversations import Conversations
from brise.traffic.imports.read import BadFileError, Format, read
from brise.traffic.records import ConversationEnd, Exchange, Label, new_id
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store, open_threads

LISTED = 20


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "log", help="look at captured traffic, label, export and forget it", allow_abbrev=False,
        description="Look at what the gateway has captured, search it, label it, take it out, or forget it. "
                    "Without an action: list.",
        epilog="example: brise log list --task triage")
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _add_looks(actions)
    _add_changes(actions)
    add_export(actions)
    add_import(actions)


def run(args: argparse.Namespace) -> int:
    if args.action is None:
        args = build_default()
    must_exist = args.action != "import"
    with closing(open_store(args.store, settings.read().home, must_exist=must_exist)) as store:
        match args.action:
            case "list":
                return log_show.table(store, log_options.query(args, newest_first=True, limit=args.limit), args.json)
            case "search":
                return log_show.table(store, log_options.query(args, newest_first=True, limit=args.limit,
                                                               text=args.text), args.json)
            case "show":
                return log_show.one(store, args.id, args.json)
            case "stats":
                return log_show.stats(store, log_options.query(args, content=False), args.json)
            case "label":
                return _label(store, args)
            case "export":
                return export(store, args)
            case "import":
                return import_files(store, args, settings.read().home)
            case "forget":
                return _forget(store, args.subject)
            case _:
                deleted = store.expire(time.time() - args.older_than)
                terminal.note(f"deleted {deleted} exchanges with their answers and labels; the ledger stays whole")
                return 0


def build_default() -> argparse.Namespace:
    """What `brise log` alone means."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["log", "list"])


def _add_looks(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = actions.add_parser("list", help="list exchanges", allow_abbrev=False,
                                 description="List exchanges, the newest first.",
                                 epilog="example: brise log list --mode degraded --since 2d")
    _add_look(listing)
    search = actions.add_parser("search", help="find exchanges by their text", allow_abbrev=False,
                                description="Find exchanges whose request or answer holds a text, without regard to "
                                            "case. Bodies are sealed, so every one of them is opened and read.",
                                epilog="example: brise log search refund --task triage")
    search.add_argument("text", metavar="TEXT", help="what to look for")
    _add_look(search)
    show = actions.add_parser("show", help="show one exchange", allow_abbrev=False,
                              description="Show one exchange with its conversation's place, answers and labels.",
                              epilog="example: brise log show 019ac2f4d1a0c0ffee00000000000001")
    show.add_argument("id", metavar="ID", help="an ID that `brise log list` shows")
    log_options.add_store(show)
    log_options.add_json(show)
    stats = actions.add_parser("stats", help="count and time what was captured", allow_abbrev=False,
                               description="Count exchanges, conversations, tokens, costs and times for each task.",
                               epilog="example: brise log stats --since 7d")
    log_options.add_filters(stats)
    log_options.add_store(stats)
    log_options.add_json(stats)


def _add_look(parser: argparse.ArgumentParser) -> None:
    log_options.add_filters(parser)
    parser.add_argument("--limit", metavar="N", type=log_options.whole, default=LISTED,
                        help=f"at most so many (default: {LISTED})")
    log_options.add_store(parser)
    log_options.add_json(parser)


def _add_changes(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    label = actions.add_parser("label", help="say how good an answer is", allow_abbrev=False,
                               description="Write down what a person, or an outcome, says of an exchange's answer.",
                               epilog="example: brise log label 019ac2f4d1a0c0ffee00000000000001 --score 1")
    label.add_argument("id", metavar="ID", help="an ID that `brise log list` shows")
    label.add_argument("--score", metavar="S", type=number_types.share,
                       help="of the answer that the client got: 0 wrong, 1 right")
    label.add_argument("--answer", metavar="ID", help="another answer to it, as `brise log show` names it")
    label.add_argument("--answer-score", metavar="S", type=number_types.share,
                       help="of that other answer: 0 wrong, 1 right")
    label.add_argument("--rung", choices=("outcome", "human"), default="human",
                       help="what says so: what happened in the world, or a person (default: human)")
    label.add_argument("--who", metavar="NAME", default="me", help="who says so (default: me)")
    label.add_argument("--note", metavar="TEXT", default="", help="why; it is sealed as the bodies are")
    log_options.add_store(label)
    forget = actions.add_parser("forget", help="forget a subject", allow_abbrev=False,
                                description="Destroy the key of a subject: nobody can read its requests and answers "
                                            "any more, in copies of the store neither.",
                                epilog="example: brise log forget anna")
    forget.add_argument("subject", metavar="SUBJECT", help="as the header x-brise-subject or the body's `user` had it")
    log_options.add_store(forget)
    expire = actions.add_parser("expire", help="delete what is old", allow_abbrev=False,
                                description="Delete exchanges with their answers and labels.",
                                epilog="example: brise log expire --older-than 30d")
    expire.add_argument("--older-than", metavar="AGE", type=log_options.age, required=True,
                        help="such as 12h, 30d or 2w")
    log_options.add_store(expire)


def _label(store: SqlStore, args: argparse.Namespace) -> int:
    exchange = log_show.find(store, args.id)
    if args.score is None and args.answer_score is None:
        raise StoreError("there is nothing to write down", hint="--score 0..1, or --answer ID --answer-score 0..1")
    if (args.answer is None) != (args.answer_score is None):
        raise StoreError("--answer and --answer-score belong together")
    known = [answer.id for answer in store.answers([exchange.id])]
    if args.answer is not None and args.answer not in known:
        raise StoreError(f"exchange {exchange.id} has no answer {args.answer!r}; it has: {', '.join(known) or 'none'}")
    now = time.time()
    store.add(labels=[Label(new_id(now), exchange.id, now, args.rung, args.who, args.score, args.answer,
                            args.answer_score, args.note)])
    terminal.note(f"labelled {exchange.id}")
    return 0


def _forget(store: SqlStore, subject: str) -> int:
    concerned = store.forget(subject)
    terminal.note(f"the key of {subject!r} is destroyed; {concerned} exchanges have no content any more, here and in "
                  "every copy of the store" if concerned else f"there is nothing of {subject!r} in {store.place}")
    return 0


def add_import(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The action and its options."""
    parser = actions.add_parser(
        "import", help="take in what another system captured", allow_abbrev=False,
        description="Take in chat rows and batches of OpenAI (JSONL), exports of Langfuse (JSON, JSONL, CSV) and of "
                    "OpenTelemetry (OTLP JSON with gen_ai attributes). All rows, or none; importing a file twice adds "
                    "nothing.",
        epilog="example: brise log import traces.jsonl --task triage")
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="files that belong together")
    parser.add_argument("--format", choices=get_args(Format), default="auto",
                        help="whose format it is (default: auto)")
    parser.add_argument("--task", metavar="NAME", help="the task of all rows (default: as the rows say, or the model)")
    parser.add_argument("--subject", metavar="NAME", help="the subject of rows that name none")
    parser.add_argument("--skip-bad", action="store_true", help="leave out rows that cannot be read, and say which")
    log_options.add_store(parser)


def import_files(store: SqlStore, args: argparse.Namespace, home: Path) -> int:
    """In one transaction: after a crash all rows are there, or none."""
    found = read(args.files, args.format)
    if found.bad and not args.skip_bad:
        raise BadFileError(found)
    if not found.exchanges:
        raise EvidenceError(f"there is no request to a model in {', '.join(map(str, args.files))}",
                            hint=None if not found.passed_over else f"{found.passed_over} rows are of other kinds")
    exchanges, threads = _placed([replace(exchange, task=args.task or exchange.task,
                                          subject=exchange.subject or args.subject)
                                  for exchange in found.exchanges], open_threads(store, home))
    before = store.count()
    store.add(exchanges, threads=threads)
    added = store.count() - before
    terminal.note(f"imported {added} exchanges" + (
        f"; {len(exchanges) - added} were there already" if added < len(exchanges) else ""))
    for place, reason in found.bad:
        terminal.note(f"  left out {place}: {reason}")
    if found.passed_over:
        terminal.note(f"  passed over {found.passed_over} rows that are no requests to a model")
    return 0


def _placed(exchanges: Sequence[Exchange], threads: Conversations) -> tuple[list[Exchange], list[ConversationEnd]]:
    """In their conversations."""
    placed, ends = list[Exchange](), list[ConversationEnd]()
    for exchange in exchanges:
        found, left = threads.place(exchange)
        placed.append(found)
        ends += left
    return placed, ends
