"""Options of `brise prove` and `brise label`: which pairs of answers, from a log or from captured traffic."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path

from brise import settings
from brise.cli import number_types
from brise.errors import BriseError
from brise.prove import certificates
from brise.prove.options import SETTLE_S, PairOptions
from brise.traffic import stores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that both commands have."""
    parser.add_argument("--pairs", metavar="FILE", type=Path,
                        help="a log that has both answers: JSON lines with prompt or messages, small and large")
    parser.add_argument("--skip-bad", action="store_true",
                        help="with --pairs: leave out rows of the log that cannot be read, and count them beside the "
                             "verdict")
    parser.add_argument("--task", metavar="TASK",
                        help="the workflow that is to be switched, in the store of captured traffic; with --pairs its "
                             "name (default: the log's)")
    parser.add_argument("--store", metavar="STORE", help="the store: a path, or postgresql://... (default: the one of "
                                                         "brise serve)")
    parser.add_argument("--small-model", "--student", metavar="NAME",
                        help="the small model, where several answered in the shadow")
    parser.add_argument("--judgements", metavar="FILE", type=Path,
                        help="with --pairs: people's verdicts on them, as `brise label` writes them")
    parser.add_argument("--since", metavar="TIME", type=moment,
                        help="only requests from then on: 2026-01-31, or with T and a time of day (UTC)")
    parser.add_argument("--until", metavar="TIME", type=moment, help="only requests before then")
    parser.add_argument("--any-context", action="store_true",
                        help="system prompt and tools may change: the certificate is bound to none")


def add_draw(parser: argparse.ArgumentParser, text: str) -> None:
    """--draw, which must be the same for both commands."""
    parser.add_argument("--draw", metavar="SHARE", type=number_types.some, help=text)


def options_of(args: argparse.Namespace, *, cluster: str | None = None, settle_s: float = SETTLE_S) -> PairOptions:
    """What the command line says."""
    return PairOptions(args.pairs, args.task, args.store, args.small_model, args.judgements, args.since, args.until,
                       args.any_context, cluster, settle_s, args.skip_bad)


def public_key(text: str) -> bytes:
    """A key by which somebody signs certificates, or where it is."""
    try:
        return certificates.key_named(text, stores.keys_folder(settings.read().home))
    except BriseError as error:
        raise argparse.ArgumentTypeError(str(error.args[0])) from None


def moment(text: str) -> float:
    """A date or a time of day as seconds since the epoch; without a zone it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: a date, or a date and time in ISO 8601, is allowed") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
