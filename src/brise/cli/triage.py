"""`brise triage` labels rows with a guarantee, by a linear model and a small one, and leaves the rest to a person."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from brise.cli import chat_options, number_types, terminal
from brise.cli.command_parser import examples
from brise.cli.progress_bar import TerminalWatcher
from brise.errors import UnsupportedError
from brise.files.atomic import staged_file
from brise.prove import triage
from brise.prove.triage import SmallTier, TierFigures, Triage, TriageOptions
from brise.stats.intervals import Interval
from brise.stats.thresholds import RiskClaim

IMPOSSIBLE = 3  # the exit status, as of `brise cascade`


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    claim = RiskClaim()
    parser = subparsers.add_parser(
        "triage", help="label rows with a guarantee, and leave the rest to a person", allow_abbrev=False,
        description="Give labels to rows, such as log lines or sentences of reports: by a linear model, by a small "
                    "model where the linear one is not sure, and by a person where neither is. "
                    "docs/guides/security.md has an example.",
        epilog=examples("brise triage fit train.jsonl --calibrate calibrate.jsonl --out sorter"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    fit = actions.add_parser(
        "fit", help="choose who answers, and certify from which confidence on", allow_abbrev=False,
        description="Learn a linear model, measure it and a small model on rows that neither has seen, choose who "
                    "answers, and certify the confidence from which labels are kept: of these at most --risk are "
                    "wrong, and this itself fails with --delta. Exit status: 0 certified, 3 impossible on these rows.",
        epilog=examples("brise triage fit train.jsonl --calibrate calibrate.jsonl --out sorter --risk 2"))
    fit.add_argument("train", metavar="TRAIN", nargs="+", type=Path,
                     help="labelled rows to learn from, as `brise tune` reads them")
    fit.add_argument("--calibrate", metavar="FILE", action="append", type=Path, required=True,
                     help="other labelled rows, 90 or more, that no tier has learned from; may be repeated")
    fit.add_argument("--test", metavar="FILE", action="append", type=Path,
                     help="more labelled rows, which are only counted; may be repeated")
    fit.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="the folder that `sort` takes")
    fit.add_argument("--model", metavar="MODEL",
                     help="a small model that may answer where the linear one is not sure (default: none)")
    fit.add_argument("--adapter", metavar="FOLDER", type=Path,
                     help="its adapter, as `brise tune` makes it of TRAIN (default: none)")
    fit.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                     help="threads of the kernels (default: BRISE_THREADS, or one a core)")
    fit.add_argument("--risk", metavar="PERCENT", type=number_types.percent, default=100 * claim.risk,
                     help=f"of kept labels that may be wrong (default: {100 * claim.risk:g})")
    fit.add_argument("--delta", metavar="PERCENT", type=number_types.percent, default=100 * claim.delta,
                     help=f"with which the guarantee itself may fail (default: {100 * claim.delta:g})")
    fit.add_argument("--json", action="store_true", help="print a JSON object")
    sort = actions.add_parser(
        "sort", help="label rows by what was certified", allow_abbrev=False,
        description="Label rows: each gets a label that the guarantee covers, by the linear or the small model, or "
                    "goes to a person, with a suggestion.",
        epilog=examples("brise triage sort new.jsonl --with sorter --out labels.jsonl"))
    sort.add_argument("data", metavar="DATA", nargs="+", type=Path, help="rows; labels in them are not looked at")
    sort.add_argument("--with", dest="folder", metavar="FOLDER", type=Path, required=True,
                      help="the folder that `fit` made")
    sort.add_argument("--out", metavar="FILE", type=Path, required=True,
                      help="JSON lines: place, by (linear, small or person), label, chance")


def run(args: argparse.Namespace) -> int:
    return _fit(args) if args.action == "fit" else _sort(args)


def _fit(args: argparse.Namespace) -> int:
    if args.model is None and args.adapter is not None:
        raise UnsupportedError("--adapter needs --model")
    small = None if args.model is None else SmallTier(args.model, args.adapter, args.threads)
    made = triage.fit(TriageOptions(tuple(args.train), tuple(args.calibrate), args.out, tuple(args.test or ()), small,
                                    RiskClaim(args.risk / 100, args.delta / 100)), TerminalWatcher())
    if args.json:
        terminal.result((args.out / triage.FILE).read_text())
    else:
        _show(made, has_small=small is not None)
    return 0 if made.threshold is not None else IMPOSSIBLE


def _sort(args: argparse.Namespace) -> int:
    rows = triage.sort(args.folder, args.data, TerminalWatcher())
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows).encode()
    with staged_file(args.out, len(text)) as file:
        file.write(text)
    counts = Counter[str](row.by for row in rows)
    terminal.result(f"{len(rows)} rows: " + ", ".join(f"{counts[by]} by {name}" for by, name in (
        ("linear", "the linear model"), ("small", "the small model"), ("person", "a person")) if counts[by]))
    return 0


def _show(made: Triage, *, has_small: bool) -> None:
    console = Console(width=110, highlight=False)
    for title, figures in (("rows that certified it", made.figures), ("test rows", made.test)):
        if figures:
            console.print(_table(title, figures))
    if has_small:
        terminal.result({"linear": "the linear model is enough: the small one would keep no more, so it is left out",
                         "small": "the small model answers: the linear one adds nothing",
                         "cascade": "the linear model answers where it is sure, the small model elsewhere",
                         }[made.answers])
    percent = f"{100 * made.claim.risk:g} %"
    if made.threshold is None:
        terminal.result(f"impossible on these rows: no confidence shows an error of {percent} or less. A person sees "
                        "everything")
        return
    terminal.result(f"of the labels that are kept at most {percent} are wrong, with {100 * (1 - made.claim.delta):g} % "
                    f"certainty ({made.method}, {made.units} rows); a person sees the others")


def _table(title: str, figures: Sequence[TierFigures]) -> Table:
    table = Table(title=f"{title}: {figures[0].rows}", title_justify="left")
    for name in ("who", "right, of all", "kept", "wrong, of kept", "kept by"):
        table.add_column(name, justify="left" if name in ("who", "kept by") else "right")
    for one in figures:
        by = "" if one.by_tier is None else ", ".join(f"{name} {count}" for name, count in one.by_tier.items() if count)
        table.add_row(one.name, _interval(one.accuracy), _interval(one.kept), _interval(one.error), by)
    return table


def _interval(share: Interval | None) -> str:
    return "" if share is None else f"{share.estimate:.1%} ({share.low:.1%} to {share.high:.1%})"
