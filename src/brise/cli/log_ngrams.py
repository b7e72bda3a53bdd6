"""`brise log ngrams`: a table of n-grams of captured answers, from which a model's answers are drafted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from brise import settings
from brise.checkpoint.open import open_checkpoint
from brise.cli import data_options, terminal
from brise.cli.command_parser import examples
from brise.data.ngrams import FILE
from brise.errors import UnsupportedError
from brise.hub.locate import find_model
from brise.prove import export
from brise.text.load import tokens_for
from brise.traffic.export import Whose
from brise.traffic.ngrams import TableOptions
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query

WHOSE: tuple[Whose, ...] = ("served", "hosted", "best")


def add_action(actions: argparse._SubParsersAction[argparse.ArgumentParser],
               add_filters: Callable[[argparse.ArgumentParser], None]) -> None:
    """The action; `add_filters` adds the options that say which exchanges, where they lie and --json."""
    parser = actions.add_parser(
        "ngrams", help="make a table of n-grams, for faster answers", allow_abbrev=False,
        description="Count which tokens follow each other in captured answers, the newest first, and write a table "
                    "from which `brise serve` drafts answers: they stay the same, and come faster. Conversations of "
                    "an open test are left out, and what only one subject said. The file is sealed under a key of the "
                    "store: `brise log forget` of a subject that is in it destroys that key, and so does the expiry of "
                    "its oldest answer. Make it again now and then.",
        epilog=examples("brise log ngrams --task triage --base smollm2 --adapter tickets-smollm2/adapter"))
    parser.add_argument("--base", metavar="MODEL", required=True,
                        help="the model that answers: a name that `brise models` lists, a .gguf file, or a folder")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help=f"the adapter that answers: the table is written into its folder, as {FILE}")
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file, for a model without an adapter")
    parser.add_argument("--answer", choices=WHOSE, default="served",
                        help="whose answer: what the client got, the large model's, or the one with the best label "
                             "(default: served)")
    data_options.add_ngram_arguments(parser, "subjects")
    add_filters(parser)


def write(store: SqlStore, args: argparse.Namespace, query: Query) -> int:
    """Runs the action."""
    if (args.adapter is None) == (args.out is None):
        raise UnsupportedError("the file's place is not clear", hint="either --adapter FOLDER or --out FILE")
    if args.adapter is not None and not args.adapter.is_dir():
        raise UnsupportedError(f"there is no folder {str(args.adapter)!r}", hint="brise tune makes adapters")
    if not args.ngrams:
        raise UnsupportedError("--ngrams is 0, which makes no table")
    tokens = tokens_for(open_checkpoint(find_model(args.base, settings.read()).path))
    out = args.out if args.adapter is None else args.adapter / FILE
    made = export.export_ngrams(store, tokens, TableOptions(out, query, args.answer, data_options.ngrams_of(args)))
    if args.json:
        terminal.result(json.dumps({**asdict(made.facts), "entries": made.entries, "bytes": made.nbytes,
                                    "subjects": made.subjects, "left_out": made.left_out.to_json(), "file": str(out)}))
        return 0
    terminal.note(f"{out}: {made.entries} n-grams of {made.facts.answers} answers of {made.subjects} subjects, "
                  f"{made.nbytes} bytes")
    for line in made.left_out.lines():
        terminal.note(line)
    return 0
