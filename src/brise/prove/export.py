"""Exports rows for training and tables of n-grams from captured traffic, without the conversations of an open test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from brise.errors import EvidenceError
from brise.files.atomic import staged_file
from brise.prove import analyses
from brise.text.load import Tokens
from brise.traffic.export import ExportReport, TrafficExportOptions, Whose, rows
from brise.traffic.ngrams import TableOptions, TableReport, write_ngrams
from brise.traffic.scrub import Scrubber
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import EVERYTHING, Query


@dataclass(frozen=True)
class RowExportOptions:
    """Which exchanges, and whose answer. `provider` is who wrote the large model's answers (None: as the model's name
    says, "none": an open model). With "best" only answers with a label of `least_score` or more.

    With `include_open_tests` conversations of an open test go too; that is a line of the ledger, and they prove nothing
    any more. `out` is a file that is not there yet.
    """

    query: Query = EVERYTHING
    whose: Whose = "hosted"
    provider: str | None = None
    least_score: float = 0.0
    include_open_tests: bool = False
    scrub: bool = True
    out: Path | None = None


@dataclass(frozen=True)
class RowExport:
    """What was written, what was left out, and what was replaced in it."""

    report: ExportReport
    replaced: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, object]:
        """For machines."""
        return {"rows": self.report.rows, "left_out": self.report.left_out.to_json(), "replaced": dict(self.replaced),
                "open_tests": {task: len(names) for task, names in self.report.held.items()},
                "score": self.report.kinds.fitting()[0]}


def export(store: SqlStore, options: RowExportOptions, write: Callable[[str], object]) -> RowExport:
    """Writes the rows, one a line, into `options.out`, or with `write` where there is no file."""
    if options.out is None:
        return _export(store, options, write)
    with staged_file(options.out, 0, mode=0o600) as file:  # bodies, opened
        return _export(store, options, lambda text: file.write(text.encode()))


def export_ngrams(store: SqlStore, tokens: Tokens, options: TableOptions) -> TableReport:
    """Writes the sealed table of the answers that `options` mean; see traffic/ngrams.py."""
    return write_ngrams(store, tokens, replace(options, held=analyses.held(store)))


def _export(store: SqlStore, options: RowExportOptions, write: Callable[[str], object]) -> RowExport:
    if not 0 <= options.least_score <= 1:
        raise EvidenceError(f"--min-score is {options.least_score:g}; allowed is 0 to 1")
    chosen = TrafficExportOptions(options.whose, "" if options.provider == "none" else options.provider,
                                  options.least_score, analyses.held(store), options.include_open_tests)
    scrubber, report = Scrubber() if options.scrub else None, ExportReport()
    try:
        for row in rows(store, options.query, chosen, scrubber, report):
            write(json.dumps(row, ensure_ascii=False) + "\n")
    finally:  # what has left has left, also if the reader went away
        if options.include_open_tests:
            analyses.record_export(store, report.held)
    if not report.rows:
        raise EvidenceError("\n".join(["there is no row to export", *report.left_out.lines()]))
    return RowExport(report, () if scrubber is None else tuple(scrubber.counts.most_common()))
