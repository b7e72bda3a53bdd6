"""Where `brise prove` and `brise label` find the pairs: in a log, or in the store of captured traffic."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from brise import settings
from brise.cli import number_types
from brise.errors import EvidenceError
from brise.files.digests import file_digest
from brise.prove import label_book, pairs_log, pairs_store
from brise.prove.calibration_rows import NEWEST
from brise.prove.pairs import Pair, settled
from brise.prove.time_window import Chosen, choose
from brise.traffic import stores
from brise.traffic.store import TrafficStore

SETTLE_S = 3600.0


@dataclass(frozen=True)
class PairSource:
    """The pairs that count, in the order of time, and all that the report says of where they come from."""

    task: str
    source: str
    source_digest: str | None
    chosen: Chosen
    notes: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that both commands have."""
    parser.add_argument("--pairs", metavar="FILE", type=Path,
                        help="a log that has both answers: JSON lines with prompt or messages, small and large")
    parser.add_argument("--task", metavar="TASK",
                        help="the workflow that is to be switched, in the store of captured traffic; with --pairs its "
                             "name (default: the log's)")
    parser.add_argument("--store", metavar="STORE", help="the store: a path, or postgresql://... (default: the one of "
                                                         "brise serve)")
    parser.add_argument("--student", metavar="NAME",
                        help="the small model that is meant, where several answered in the background")

    parser.add_argument("--judgements", metavar="FILE", type=Path,
                        help="with --pairs: what people said of them, as `brise label` writes it")
    parser.add_argument("--since", metavar="TIME", type=moment,
                        help="only what was asked from then on: 2026-01-31, or with T and a time of day (UTC)")
    parser.add_argument("--until", metavar="TIME", type=moment, help="only what was asked before")
    parser.add_argument("--any-context", action="store_true",
                        help="system prompt and tools may change: the certificate is bound to none")


def add_draw(parser: argparse.ArgumentParser, text: str) -> None:
    """--draw, which both commands must be told alike."""
    parser.add_argument("--draw", metavar="SHARE", type=number_types.some, help=text)


def check(args: argparse.Namespace) -> None:
    """EvidenceError if no source is named."""
    if args.pairs is None and args.task is None:
        raise EvidenceError("nothing says where the answers are",
                            hint="--task TASK in captured traffic, or --pairs FILE, a log that has both answers")


@contextmanager
def opened(args: argparse.Namespace, *, is_optional: bool = False) -> Iterator[TrafficStore | None]:
    """The store, for as long as it is needed; none for a log (or where it `is_optional`) without --store."""
    if (args.pairs is not None or is_optional) and args.store is None:
        yield None
        return
    must_exist = args.pairs is None and not is_optional
    with closing(stores.open_store(args.store, settings.read().home, must_exist=must_exist)) as store:
        yield store


def find(args: argparse.Namespace, store: TrafficStore | None, *, unit: str | None = None, settle_s: float = SETTLE_S,
         last_s: float | None = None, fingerprint: str | None = NEWEST) -> PairSource:
    """All pairs of the source, and of these those that count; with `last_s` as they did when that was the newest, and
    with `fingerprint` those of this version of the candidate."""
    if args.pairs is not None:
        if args.student is not None:
            raise EvidenceError("--student is for captured traffic, --pairs is a log")
        until_s = args.until if last_s is None else math.nextafter(last_s, math.inf)
        pairs = pairs_log.read(args.pairs, unit)
        if args.judgements is not None:
            book = label_book.FileBook(args.judgements)
            pairs = label_book.with_verdicts(pairs, [*book.verdicts(), *book.verdicts("judge")])
        chosen = choose(pairs, args.since, until_s, any_context=args.any_context)
        return PairSource(args.task or args.pairs.stem, str(args.pairs), file_digest(args.pairs), chosen)
    assert store is not None and args.task is not None, "checked before"
    if args.judgements is not None:
        raise EvidenceError("--judgements goes with --pairs: verdicts on captured traffic are in its store")
    captured = pairs_store.read(store, args.task, args.since, args.until, student=args.student, fingerprint=fingerprint,
                                unit=unit)
    quiet = _quiet(captured.pairs, args.until, settle_s if unit is None else 0.0)
    quiet = tuple(pair for pair in quiet if last_s is None or pair.at_s is None or pair.at_s <= last_s)
    chosen = choose(quiet, any_context=args.any_context)
    grown = len(captured.pairs) - len(quiet)
    late = ((grown, f"of conversations under {settle_s:g} s old, or asked later in one than that"),) if grown else ()
    return PairSource(args.task, args.store or "captured traffic", None,
                      Chosen(chosen.pairs, (*captured.left_out, *late, *chosen.left_out), chosen.changes))


def moment(text: str) -> float:
    """A date or a time of day as seconds since the epoch; without a zone it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: a date, or a date and time in ISO 8601, is allowed") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _quiet(pairs: tuple[Pair, ...], until_s: float | None, settle_s: float) -> tuple[Pair, ...]:
    if settle_s == 0:
        return pairs
    found = settled(pairs, settle_s, min(time.time(), until_s or time.time()))
    if not found:
        raise EvidenceError(f"all {len(pairs)} pairs are of conversations that began in the last {settle_s:g} s and "
                            "may still grow", hint="look again later, or give --settle a smaller number")
    return found
