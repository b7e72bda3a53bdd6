"""Where the pairs of a proof come from: a log, or the store of captured traffic. `live.py` makes new ones."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from brise import settings
from brise.data.left_out import LeftOut
from brise.errors import EvidenceError
from brise.files.digests import file_digest
from brise.prove import label_book, pairs_log, pairs_store
from brise.prove.calibration_rows import NEWEST
from brise.prove.options import PairOptions
from brise.prove.pairs import Chosen, MissingPair, Pair, choose, settled
from brise.traffic import stores
from brise.traffic.records import shadow_skipped
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import TrafficStore


@dataclass(frozen=True)
class PairSource:
    """The pairs that count, in the order of time, and all that the report says of where they come from."""

    task: str
    source: str
    source_digest: str | None
    chosen: Chosen
    notes: tuple[str, ...] = ()


@contextmanager
def opened(options: PairOptions, *, is_optional: bool = False) -> Iterator[SqlStore | None]:
    """The store, for as long as it is needed; none for a log (or where it `is_optional`) unless one is named."""
    if (options.log is not None or is_optional) and options.store is None:
        yield None
        return
    must_exist = options.log is None and not is_optional
    with closing(stores.open_store(options.store, settings.read().home, must_exist=must_exist)) as store:
        yield store


def select(options: PairOptions, store: TrafficStore | None, *, last_s: float | None = None,
           fingerprint: str | None = NEWEST) -> PairSource:
    """The pairs that count; with `last_s` as they did when that was the newest, and with `fingerprint` those of this
    version of the small model.
    """
    return _logged(options, last_s) if options.log is not None else _captured(options, store, last_s, fingerprint)


def _logged(options: PairOptions, last_s: float | None) -> PairSource:
    assert options.log is not None, "asked for before"
    if options.small_model is not None:
        raise EvidenceError("--small-model is for captured traffic, --pairs is a log")
    until_s = options.until_s if last_s is None else math.nextafter(last_s, math.inf)
    unread = LeftOut()
    pairs = pairs_log.read(options.log, options.cluster, unread if options.skip_bad else None)
    if options.judgements is not None:
        book = label_book.FileBook(options.judgements)
        pairs = label_book.with_verdicts(pairs, [*book.verdicts(), *book.verdicts("judge")])
    chosen = choose(pairs, options.since_s, until_s, any_context=options.any_context)
    if unread:
        chosen = replace(chosen, left_out=(*((number, why) for why, number in unread.most_common()), *chosen.left_out))
    return PairSource(options.task or options.log.stem, str(options.log), file_digest(options.log), chosen)


def _captured(options: PairOptions, store: TrafficStore | None, last_s: float | None,
              fingerprint: str | None) -> PairSource:
    assert store is not None and options.task is not None, "checked before"
    if options.judgements is not None:
        raise EvidenceError("--judgements goes with --pairs: verdicts on captured traffic are in its store")
    captured = pairs_store.read(store, options.task, options.since_s, options.until_s,
                                small_model=options.small_model, fingerprint=fingerprint, cluster=options.cluster)
    settle_s = options.settle_s
    quiet = _quiet(captured.pairs, options.until_s, settle_s if options.cluster is None else 0.0)
    quiet = tuple(pair for pair in quiet if last_s is None or pair.at_s is None or pair.at_s <= last_s)
    chosen = choose(quiet, any_context=options.any_context)
    grown = len(captured.pairs) - len(quiet)
    late = ((grown, f"of conversations under {settle_s:g} s old, or asked later in one than that"),) if grown else ()
    left_out = (*captured.left_out, *late, *chosen.left_out, *_unanswered(options.task, store))
    return PairSource(options.task, options.store or "captured traffic", None,
                      Chosen(chosen.pairs, left_out, chosen.changes, _missing(captured.missing, chosen.pairs)))


def _unanswered(task: str, store: TrafficStore) -> tuple[tuple[int, str], ...]:
    """Requests that the large model answered and the shadow did not: counted, but of no known time."""
    return tuple((number, f"{why} (requests in all of the store's time)")
                 for why, number in shadow_skipped(store.skipped()).get(task, {}).items())


def _missing(found: tuple[MissingPair, ...], chosen: tuple[Pair, ...]) -> tuple[MissingPair, ...]:
    """Those that were asked between the first and the last of the pairs that count."""
    times = [pair.at_s for pair in chosen if pair.at_s is not None]
    return tuple(one for one in found if times and min(times) <= one.at_s <= max(times))


def _quiet(pairs: tuple[Pair, ...], until_s: float | None, settle_s: float) -> tuple[Pair, ...]:
    """The pairs without those of conversations that may still grow."""
    if settle_s == 0:
        return pairs
    found = settled(pairs, settle_s, min(time.time(), until_s or time.time()))
    if not found:
        raise EvidenceError(f"all {len(pairs)} pairs are of conversations that began in the last {settle_s:g} s and "
                            "may still grow", hint="look again later, or give --settle a smaller number")
    return found
