"""The options of data that several commands share: which rows, what of them is learned, and the table of n-grams."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

from brise.cli import chat_options, memory_options
from brise.data.count_ngrams import LEAST, NBYTES, NgramOptions
from brise.data.prepare import DataOptions
from brise.data.read_rows import Columns
from brise.data.rights import Rights, read_rights
from brise.text.action_space import read_action_space


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All of them; --seed is the command's own."""
    parser.add_argument("--held-out", metavar="FILE", type=Path, action="append",
                        help="rows to evaluate on, in place of a share of DATA; may be repeated")
    parser.add_argument("--held-out-share", metavar="SHARE", type=number(0.0), default=0.1,
                        help="share of the conversations that is held out (default: 0.1)")
    parser.add_argument("--held-out-count", metavar="N", type=chat_options.count,
                        help="number of examples to hold out, in place of a share")
    parser.add_argument("--conversation", metavar="FIELD", action="append",
                        help="field that identifies a conversation, such as meta.seed; may be repeated")
    parser.add_argument("--learn", choices=("assistant", "all"), default="assistant",
                        help="learn the assistant's tokens, or all (default: assistant)")
    parser.add_argument("--max-length", metavar="N", type=chat_options.count,
                        help="longest row in tokens; longer ones are left out and reported (default: what the model "
                             "allows)")
    parser.add_argument("--refuse-long", action="store_true", help="longer rows are an error")
    parser.add_argument("--skip-bad", action="store_true", help="leave bad rows out instead of failing")
    parser.add_argument("--allow-leakage", action="store_true",
                        help="accept held-out rows whose prompts are trained on")
    parser.add_argument("--provider", metavar="NAME",
                        help="provider of the model that wrote the answers, for rows that name none")
    parser.add_argument("--rights", metavar="FILE", type=Path,
                        help="rights.toml, with the providers that allow training on their answers")
    parser.add_argument("--absorb-system", metavar="TEXT", nargs="?", const="",
                        help="leave out the rows' system prompts, or put TEXT in their place")
    parser.add_argument("--as-text", action="store_true",
                        help="treat prompt and completion as one text, without a chat format")
    parser.add_argument("--actions", metavar="FILE", type=Path,
                        help="action space of rows with 'actions', a TOML file: docs/guides/robots.md (default: none)")
    parser.add_argument("--prompt-column", metavar="NAME", default="prompt",
                        help="prompt column of a CSV (default: prompt)")
    parser.add_argument("--completion-column", metavar="NAME", default="completion",
                        help="completion column of a CSV (default: completion)")
    parser.add_argument("--system-column", metavar="NAME", help="system prompt column of a CSV (default: none)")
    parser.add_argument("--conversation-column", metavar="NAME",
                        help="conversation column of a CSV: rows of one conversation stay on one side of the split "
                             "(default: none)")


def rows_of(args: argparse.Namespace) -> DataOptions:
    """How data become rows."""
    absorb: bool | str = False
    if args.absorb_system is not None:
        absorb = args.absorb_system or True
    return DataOptions(
        seed=args.seed,
        columns=Columns(args.prompt_column, args.completion_column, args.system_column, args.conversation_column),
        conversation=tuple(args.conversation or ()), provider=args.provider,
        rights=Rights() if args.rights is None else read_rights(args.rights), skip_bad=args.skip_bad,
        held_out_share=args.held_out_share, held_out_count=args.held_out_count,
        held_out=tuple(args.held_out or ()), allow_leakage=args.allow_leakage, max_tokens=args.max_length,
        too_long="refuse" if args.refuse_long else "leave_out", targets=args.learn, absorb_system=absorb,
        as_text=args.as_text, actions=None if args.actions is None else read_action_space(args.actions))


def add_ngram_arguments(parser: argparse.ArgumentParser, owners: str) -> None:
    """--ngrams and --ngram-least, of which the `owners` are conversations or subjects."""
    parser.add_argument("--ngrams", metavar="SIZE", type=_table_size, default=f"{NBYTES >> 20}MiB",
                        help="largest size of the table of n-grams, from which answers are drafted; 0: none "
                             f"(default: {NBYTES >> 20}MiB)")
    parser.add_argument("--ngram-least", metavar="N", type=chat_options.count, default=LEAST,
                        help=f"leave out of the table what fewer {owners} than this have in common "
                             f"(default: {LEAST})")


def ngrams_of(args: argparse.Namespace) -> NgramOptions:
    """How the table of n-grams is made."""
    return NgramOptions(args.ngrams, args.ngram_least)


def _table_size(text: str) -> int:
    return 0 if text == "0" else memory_options.size(text)


def number(least: float) -> Callable[[str], float]:
    """The type of an option that is a number of at least `least`."""
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text!r}: a number of at least {least:g} is allowed")
        return value

    return read


def seed(text: str) -> int:
    """The type of --seed."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of up to 18 digits is allowed")
    return int(text)
