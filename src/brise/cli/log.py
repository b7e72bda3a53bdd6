"""`brise log` lists, searches, labels, exports, imports and forgets captured traffic."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shlex
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from brise import settings
from brise.cli import log_ngrams, log_tables, number_types, terminal
from brise.cli.command_parser import examples, parsed
from brise.errors import StoreError
from brise.hub.store import ModelStore
from brise.prove import export
from brise.prove.export import RowExportOptions
from brise.traffic import label_files, log, ngrams
from brise.traffic.export import Whose
from brise.traffic.imports.read import NUM_SHOWN, Format
from brise.traffic.log import ImportOptions, LabelEntry
from brise.traffic.records import Mode, Role
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query
from brise.traffic.stores import open_store

LISTED = 20
DEFAULT_MODEL = "smollm2"
UNITS: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "log", help="look at captured traffic, label, export and forget it", allow_abbrev=False,
        description="Look at what the gateway has captured, search it, label it, take it out, or forget it. Without an "
                    "action: list. docs/guides/store.md says what is kept, how it is sealed and where.",
        epilog=examples("brise log",
                        "brise log list --task triage"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _add_views(actions)
    _add_changes(actions)
    _add_export(actions)
    _add_import(actions)
    log_ngrams.add_action(actions, _add_look_at_all)


def run(args: argparse.Namespace) -> int:
    if args.action is None:
        args = parsed(add_parser, "log", "list")
    must_exist = args.action != "import"
    with closing(open_store(args.store, settings.read().home, must_exist=must_exist)) as store:
        match args.action:
            case "list" | "search" | "show" | "stats":
                return _view(store, args)
            case "label":
                return _label(store, args)
            case "export":
                return _export(store, args)
            case "ngrams":
                return log_ngrams.write(store, args, _query(args))
            case "import":
                return _import(store, args)
            case "forget":
                return _forget(store, args.subject, everywhere=args.all_stores)
            case _:
                deleted = store.expire(time.time() - args.older_than)
                terminal.note(f"deleted {deleted} exchanges with their answers and labels; the ledger stays whole")
                return 0


def _view(store: SqlStore, args: argparse.Namespace) -> int:
    match args.action:
        case "show":
            return log_tables.one(store, args.id, args.json)
        case "stats":
            return log_tables.stats(store, _query(args, content=False), args.json)
        case _:
            text = args.text if args.action == "search" else None
            return log_tables.table(store, _query(args, newest_first=True, limit=args.limit, text=text), args.json)


def _add_views(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listing = actions.add_parser("list", help="list exchanges", allow_abbrev=False,
                                 description="List exchanges, the newest first: one request and the answer that its "
                                             "client got on a line.",
                                 epilog=examples("brise log list --task triage",
                                                 "brise log list --mode degraded --since 2d"))
    _add_look(listing)
    search = actions.add_parser("search", help="find exchanges by their text", allow_abbrev=False,
                                description="Find exchanges whose request or answer holds a text, without regard to "
                                            "case. Bodies are sealed, so every one of them is opened and read: a "
                                            "filter on task or time makes it faster.",
                                epilog=examples("brise log search refund --task triage"))
    search.add_argument("text", metavar="TEXT", help="what to look for")
    _add_look(search)
    show = actions.add_parser("show", help="show one exchange", allow_abbrev=False,
                              description="Show one exchange: what is known of it, both bodies, other answers to it "
                                          "(from the shadow, from an audit) and its labels.",
                              epilog=examples("brise log show 019ac2f4d1a0c0ffee00000000000001"))
    show.add_argument("id", metavar="ID", help="an ID that `brise log list` shows")
    _add_store(show)
    _add_json(show)
    stats = actions.add_parser("stats", help="count and time what was captured", allow_abbrev=False,
                               description="Count exchanges, conversations, errors, tokens, costs and times for each "
                                           "task, and what was not written.",
                               epilog=examples("brise log stats --since 7d"))
    _add_look_at_all(stats)


def _add_look_at_all(parser: argparse.ArgumentParser) -> None:
    _add_filters(parser)
    _add_store(parser)
    _add_json(parser)


def _add_look(parser: argparse.ArgumentParser) -> None:
    _add_filters(parser)
    parser.add_argument("--limit", metavar="N", type=_whole, default=LISTED,
                        help=f"at most so many (default: {LISTED})")
    _add_store(parser)
    _add_json(parser)


def _add_changes(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    label = actions.add_parser("label", help="say how good an answer is", allow_abbrev=False,
                               description="Write down what a person, or an outcome, says of an exchange's answer, or "
                                           "of another answer to it; or of many, from a table or JSON lines with id "
                                           "and score. A file that is loaded twice adds nothing.",
                               epilog=examples("brise log label 019ac2f4d1a0c0ffee00000000000001 --score 1",
                                               "brise log label --file outcomes.csv"))
    label.add_argument("id", metavar="ID", nargs="?",
                       help="an ID that `brise log list` shows, or the answer's header x-brise-id")
    label.add_argument("--file", metavar="FILE", type=Path,
                       help="a .csv with the columns id and score, or .jsonl with these fields; also read are answer, "
                            "answer_score, who, note and at. Scores are 0 to 1, true or false")
    label.add_argument("--score", metavar="S", type=number_types.share,
                       help="of the answer that the client got: 0 wrong, 1 right")
    label.add_argument("--answer", metavar="ID", help="another answer to it, as `brise log show` names it")
    label.add_argument("--answer-score", metavar="S", type=number_types.share,
                       help="of that other answer: 0 wrong, 1 right")
    label.add_argument("--label-source", "--rung", choices=("outcome", "human"),
                       help="what says so: what happened in the world, or a person (default: human; of a file: "
                            "outcome)")
    label.add_argument("--who", metavar="NAME", help="who says so (default: me; of a file: outcome)")
    label.add_argument("--note", metavar="TEXT", default="", help="why; it is sealed as the bodies are")
    _add_store(label)
    _add_json(label)
    forget = actions.add_parser("forget", help="forget a subject", allow_abbrev=False,
                                description="Destroy the store's key of a subject. Nobody can read its requests and "
                                            "answers any more, not in copies of the store either. Its name, its labels "
                                            "and the names of its conversations go too; what surrounds them (task, "
                                            "time, tokens, scores) stays. Other stores that hold the subject are "
                                            "named, and keep what they have.",
                                epilog=examples("brise log forget anna"))
    forget.add_argument("subject", metavar="SUBJECT", help="as the header x-brise-subject or the body's `user` had it")
    forget.add_argument("--all-stores", action="store_true",
                        help="destroy the subject's keys of every store of this BRISE_HOME")
    _add_store(forget)
    expire = actions.add_parser("expire", help="delete what is old", allow_abbrev=False,
                                description="Delete exchanges with their answers and labels. The ledger is never "
                                            "deleted.",
                                epilog=examples("brise log expire --older-than 30d"))
    expire.add_argument("--older-than", metavar="AGE", type=_age, required=True,
                        help="such as 12h, 30d or 2w")
    _add_store(expire)


def _label(store: SqlStore, args: argparse.Namespace) -> int:
    if args.file is not None:
        return _label_file(store, args)
    if args.id is None:
        raise StoreError("no exchange is named", hint="brise log label ID --score 1, or --file FILE for many")
    labelled = log.label(store, LabelEntry(args.id, args.score, args.answer, args.answer_score,
                                           args.label_source or "human", args.who or "me", args.note))
    if args.json:
        terminal.result(json.dumps({"labelled": labelled.id}))
    else:
        terminal.note(f"labelled {labelled.id}")
    return 0


def _label_file(store: SqlStore, args: argparse.Namespace) -> int:
    """Status 1 if there is no label in the file that the store has now."""
    for option, value in (("ID", args.id), ("--score", args.score), ("--answer", args.answer),
                          ("--answer-score", args.answer_score), ("--note", args.note or None)):
        if value is not None:
            raise StoreError(f"{option} is for one label, --file has many")
    loaded = label_files.load_file(store, args.file, args.label_source or "outcome", args.who or "outcome")
    if args.json:
        terminal.result(json.dumps(loaded.to_json()))
    else:
        terminal.note(f"added {_counted(loaded.added, 'label')}")
        for place, reason in loaded.bad:
            terminal.note(f"  left out {place}: {reason}")
        for line in loaded.left_out.lines():
            terminal.note(line)
    return 0 if loaded.added or loaded.left_out[label_files.SAME] else 1


def _export(store: SqlStore, args: argparse.Namespace) -> int:
    """What was left out, and what was replaced, goes to stderr."""
    if args.json and args.out is None:
        raise StoreError("--json needs --out FILE: without it the rows are what is printed")
    made = export.export(store, RowExportOptions(
        _query(args, text=args.text, limit=args.limit), args.answer, args.provider, args.min_score,
        args.include_open_tests, not args.no_scrub, args.out), terminal.stream)
    if args.json:
        terminal.result(json.dumps(made.to_json()))
        return 0
    terminal.note(f"exported {made.report.rows} rows" + ("" if args.out is None else f" to {args.out}"))
    for line in made.report.left_out.lines():
        terminal.note(line)
    for task, names in made.report.held.items():
        what = "exported: they prove nothing any more" if args.include_open_tests else (
            "left out (--include-open-tests)")
        terminal.note(f"{len(names)} conversations of the open test of {task!r} are {what}")
    if made.replaced:
        terminal.note("replaced " + ", ".join(f"{number} {kind}" for kind, number in made.replaced))
    score, why = made.report.kinds.fitting()
    terminal.note(f"the scorer that fits: --score {score}: {why}")
    if args.out is not None:
        terminal.note(f"next: {_evaluated(args.out, score)}")
    return 0


def _evaluated(path: Path, score: str) -> str:
    """The command that evaluates a model on exported rows; it pulls the default one where there is none yet."""
    models = ModelStore(settings.read().home).names()
    name = DEFAULT_MODEL if DEFAULT_MODEL in models or not models else models[0]
    pulled = "" if models else f"brise pull {name} && "
    return f"{pulled}brise eval {shlex.quote(str(path))} --model {shlex.quote(name)} --score {score}"


def _import(store: SqlStore, args: argparse.Namespace) -> int:
    found = log.import_files(store, ImportOptions(tuple(args.files), args.format, args.task, args.subject,
                                                  args.skip_bad), settings.read().home)
    if args.json:
        terminal.result(json.dumps(found.to_json()))
        return 0
    terminal.note(f"imported {found.added} exchanges" + (
        f"; {found.known} were there already" if found.known else ""))
    for place, reason in found.bad[:NUM_SHOWN]:
        terminal.note(f"  left out {place}: {reason}")
    for line in found.left_out.lines():
        terminal.note(line)
    return 0


def _forget(store: SqlStore, subject: str, *, everywhere: bool) -> int:
    (concerned, tables), name = ngrams.forget(store, subject, everywhere=everywhere), repr(subject)
    terminal.note(
        f"the key of {name} is destroyed: {_counted(concerned, 'exchange')} {'has' if concerned == 1 else 'have'} no "
        f"content and no names any more, in {store.place} and in every copy of it" if concerned else
        f"there is nothing of {name} in {store.place}")
    for path in tables:
        terminal.note(f"removed {path}, a table of n-grams with something of {name}: brise log ngrams makes it again")
    if everywhere:
        terminal.note(f"no store of this BRISE_HOME opens anything of {name} any more")
        return 0
    for place in store.holders(subject):
        terminal.note(f"{name} is also in {place}: brise log forget {shlex.quote(subject)} --store "
                      f"{shlex.quote(place)}")
    if store.shares_key(subject):
        terminal.note(f"rows of {name} from before brise 0.3 have a key that all stores of this BRISE_HOME share; it "
                      "stays for the others: --all-stores destroys it")
    return 0


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _add_export(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The action and its options."""
    parser = actions.add_parser(
        "export", help="write rows for `brise tune` and `brise eval`", allow_abbrev=False,
        description="Write exchanges as chat rows, one a line, which `brise tune` and `brise eval` read. Earlier "
                    "answers of a conversation have weight 0, so each answer is learned once; a row names the provider "
                    "of its answer, if the large model wrote it, so that the teacher's rights are asked for. Secrets "
                    "and personal data that have a form of their own become placeholders such as [EMAIL_1]. What "
                    "cannot be a row (no content, an error, audio) is counted on stderr.",
        epilog=examples("brise log export --task triage --out triage.jsonl"))
    _add_filters(parser)
    parser.add_argument("--text", metavar="TEXT", help="only where a request or an answer holds this text")
    parser.add_argument("--limit", metavar="N", type=_whole, help="at most so many exchanges, the oldest")
    parser.add_argument("--out", metavar="FILE", type=Path, help="a file that is not there yet (default: stdout)")
    parser.add_argument("--answer", choices=get_args(Whose), default="hosted",
                        help="whose answer: what the client got, the large model's, or the one with the best label "
                             "(default: hosted)")
    parser.add_argument("--min-score", metavar="S", type=float, default=0.0,
                        help="with --answer best: only answers with a label of at least this (default: 0)")
    parser.add_argument("--provider", metavar="NAME",
                        help="who wrote the large model's answers, for the teacher's rights; none: an open model, "
                             "which needs no rights (default: as the model's name says)")
    parser.add_argument("--include-open-tests", "--include-gate", action="store_true",
                        help="conversations of an open test, too: brise prove has analysed them and not decided yet. "
                             "It is written into the ledger, and they prove nothing any more")
    parser.add_argument("--no-scrub", action="store_true", help="leave secrets and personal data as they are")
    _add_store(parser)
    _add_json(parser)


def _add_import(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The action and its options."""
    parser = actions.add_parser(
        "import", help="take in what another system captured", allow_abbrev=False,
        description="Take in chat rows, stored completions and batches of OpenAI, batches of Anthropic (JSONL), "
                    "exports of Langfuse (JSON, JSONL, CSV), spend logs of LiteLLM, and spans of OpenTelemetry (OTLP "
                    "JSON), OpenInference and the AI SDK. All rows, or none and a list of what is wrong with which "
                    "line. Give one batch at a time: the requests' file and the responses'. Importing a file twice "
                    "adds nothing.",
        epilog=examples("brise log import traces.jsonl --task triage"))
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="files that belong together")
    parser.add_argument("--format", choices=get_args(Format), default="auto",
                        help="whose format it is (default: auto)")
    parser.add_argument("--task", metavar="NAME", help="the task of all rows (default: as the rows say, or the model)")
    parser.add_argument("--subject", metavar="NAME", help="the subject of rows that name none")
    parser.add_argument("--skip-bad", action="store_true", help="leave out rows that cannot be read, and say which")
    _add_store(parser)
    _add_json(parser)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    """Which exchanges."""
    parser.add_argument("--task", metavar="NAME", help="only of this task (default: of every)")
    parser.add_argument("--model", metavar="NAME", help="only where this model was asked for")
    parser.add_argument("--mode", metavar="MODE", choices=get_args(Mode), action="append",
                        help=f"only answered so; may be given several times: {', '.join(get_args(Mode))}")
    parser.add_argument("--conversation", metavar="ID", help="only of this conversation")
    parser.add_argument("--subject", metavar="NAME", help="only of this subject")
    parser.add_argument("--label", metavar="NAME=VALUE", type=_pair,
                        help="only with this label from the header x-brise-label-NAME")
    parser.add_argument("--since", metavar="WHEN", type=_moment,
                        help="only from then on: 2026-03-01, 2026-03-01T12:00, or an age such as 12h, 30d, 2w")
    parser.add_argument("--until", metavar="WHEN", type=_moment, help="only before then")
    parser.add_argument("--with", dest="has_answer", metavar="ROLE", choices=get_args(Role),
                        help=f"only with another answer of this kind: {', '.join(get_args(Role))}")


def _add_store(parser: argparse.ArgumentParser) -> None:
    """Where the traffic lies."""
    parser.add_argument("--store", metavar="PLACE",
                        help="a path or a postgresql:// URL (default: traffic.sqlite in BRISE_HOME's folder gateway)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    """For programs."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def _query(args: argparse.Namespace, **more: Any) -> Query:
    """What the filters say."""
    found = Query(args.task, args.model, args.mode, args.conversation, args.subject, args.label, args.since,
                  args.until, has_answer=args.has_answer)
    return replace(found, **more)


def _whole(text: str) -> int:
    """A number from 1 on."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:12]):
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 1 on is allowed")
    return int(text)


def _age(text: str) -> float:
    """30d in seconds."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: an age is a number with s, m, h, d or w, such as 30d")
    return float(found[1]) * UNITS[found[2]]


def _moment(text: str) -> float:
    """A date, a time, or an age before now, in seconds since the epoch."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        return time.time() - _age(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a date (2026-03-01), a time (2026-03-01T12:00) or an age (12h, 30d, 2w) is allowed") from None


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=VALUE is allowed")
    return name.lower(), value
