"""`brise log export`: captured traffic as rows that can be trained on and evaluated."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from brise.cli import log_options, terminal
from brise.errors import EvidenceError
from brise.files.atomic import staged_file
from brise.prove import analyses
from brise.traffic.export import ExportReport, TrafficExportOptions, Whose, rows
from brise.traffic.scrub import Scrubber
from brise.traffic.sql_store import SqlStore

NUM_REASONS = 10


def add_export(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The action and its options."""
    parser = actions.add_parser(
        "export", help="write rows for `brise tune` and `brise eval`", allow_abbrev=False,
        description="Write exchanges as chat rows, one a line, which `brise tune` and `brise eval` read. Secrets and "
                    "personal data that have a form of their own are replaced.",
        epilog="example: brise log export --task triage --out triage.jsonl")
    log_options.add_filters(parser)
    parser.add_argument("--text", metavar="TEXT", help="only where a request or an answer holds this text")
    parser.add_argument("--limit", metavar="N", type=log_options.whole, help="at most so many exchanges, the oldest")
    parser.add_argument("--out", metavar="FILE", type=Path, help="a file that is not there yet (default: stdout)")
    parser.add_argument("--answer", choices=get_args(Whose), default="hosted",
                        help="whose answer: what the client got, the hosted model's, or the one with the best label "
                             "(default: hosted)")
    parser.add_argument("--min-score", metavar="S", type=float, default=0.0,
                        help="with --answer best: only answers with a label of at least this (default: 0)")
    parser.add_argument("--provider", metavar="NAME",
                        help="who wrote the hosted answers, for the teacher's rights; none: an open model, which "
                             "needs no rights (default: as the model's name says)")
    parser.add_argument("--include-gate", action="store_true",
                        help="conversations of an open gate, too: brise prove has looked at them and not decided yet. "
                             "It is written into the ledger, and they prove nothing any more")
    parser.add_argument("--no-scrub", action="store_true", help="leave secrets and personal data as they are")
    log_options.add_store(parser)


def export(store: SqlStore, args: argparse.Namespace) -> int:
    """Writes the rows; what was left out, and what was replaced, goes to stderr."""
    if not 0 <= args.min_score <= 1:
        raise EvidenceError(f"--min-score is {args.min_score:g}; allowed is 0 to 1")
    provider = "" if args.provider == "none" else args.provider
    options = TrafficExportOptions(args.answer, provider, args.min_score, analyses.held(store), args.include_gate)
    scrubber, report = None if args.no_scrub else Scrubber(), ExportReport()
    query = log_options.query(args, text=args.text, limit=args.limit)
    with _output(args.out) as write:
        try:
            for row in rows(store, query, options, scrubber, report):
                write(json.dumps(row, ensure_ascii=False) + "\n")
        finally:  # what has left has left, also if the reader went away
            if args.include_gate:
                analyses.record_export(store, report.held)
        if not report.rows:
            raise EvidenceError("\n".join(["there is no row to export", *_left_out(report)]))
    terminal.note(f"exported {report.rows} rows" + ("" if args.out is None else f" to {args.out}"))
    for line in _left_out(report):
        terminal.note(line)
    for task, names in report.held.items():
        what = "exported: they prove nothing any more" if args.include_gate else "left out (--include-gate)"
        terminal.note(f"{len(names)} conversations of the open gate of {task!r} are {what}")
    if scrubber is not None and scrubber.counts:
        terminal.note("replaced " + ", ".join(f"{number} {kind}" for kind, number in scrubber.counts.most_common()))
    return 0


def _left_out(report: ExportReport) -> list[str]:
    return [f"  left out {number}: {reason}" for reason, number in report.left_out.most_common(NUM_REASONS)]


@contextmanager
def _output(path: Path | None) -> Iterator[Callable[[str], object]]:
    if path is None:
        yield terminal.stream
    else:
        with staged_file(path, 0) as file:
            yield lambda text: file.write(text.encode())
