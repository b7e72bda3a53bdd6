"""`brise log import`: traffic that another system captured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from brise.cli import log_options, terminal
from brise.errors import EvidenceError
from brise.gateway.imports.read import BadFileError, Format, read
from brise.gateway.records import Exchange, Thread
from brise.gateway.sql_store import SqlStore
from brise.gateway.stores import open_threads
from brise.gateway.threads import Threads


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


def _placed(exchanges: Sequence[Exchange], threads: Threads) -> tuple[list[Exchange], list[Thread]]:
    """In their conversations."""
    placed, ends = list[Exchange](), list[Thread]()
    for exchange in exchanges:
        found, left = threads.place(exchange)
        placed.append(found)
        ends += left
    return placed, ends
