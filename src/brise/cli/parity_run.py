"""What `brise parity` does, and how a report of parity is shown."""

from __future__ import annotations

import argparse
import json

import torch
from rich.console import Console
from rich.table import Table

from brise import settings
from brise.backends import num_cores
from brise.checkpoint.adapters.lineage import check_base, read_lineage
from brise.checkpoint.adapters.peft import read_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli import progress_bar, terminal, tune_images, tune_options
from brise.data.example import EncodedRow
from brise.data.prepare import DataOptions, Dataset, prepare
from brise.hub.store import ModelStore, locate
from brise.quant.quality import QuantQuality
from brise.tune.packing import FeaturesOf
from brise.tune.parity import parity, templates
from brise.tune.parity.parity import ParityReport, Tolerance
from brise.tune.parity.replay import ParityReplay, open_replay


def run(args: argparse.Namespace) -> int:
    """0 if both say the same, 1 if they part."""
    settings_ = settings.read()
    store, threads = ModelStore(settings_.home), args.threads or settings_.threads or num_cores()
    torch.set_num_threads(threads)
    base = locate(args.model, store)
    served = None if args.served is None else locate(args.served, store).path
    check_base(read_lineage(args.adapter), base, any_base=args.any_base)
    checkpoint = open_checkpoint(base.path)
    low_ranks = read_adapter(args.adapter, checkpoint.config).low_ranks
    replay = open_replay(base.path, low_ranks, served, threads)
    options = tune_options.data_options_of(args, replay.config.max_context)
    dataset = prepare(args.data, replay.trained_tokens, options, images=tune_images.settings_of(checkpoint))
    # A merged model was rounded anew: that its base differs less says nothing.
    times_base = None if args.served is not None else args.max_times_base
    tolerance = Tolerance(args.max_mean_kl, args.min_agreement, times_base)
    report = compare(replay, dataset, args.rows, tolerance, options, tune_images.load(checkpoint, dataset, threads))
    if args.json:
        terminal.result(json.dumps(report.as_json(), indent=1))
    else:
        show(report)
    return 0 if report.passed else 1


def compare(replay: ParityReplay, dataset: Dataset, num_rows: int, tolerance: Tolerance, options: DataOptions,
            features_of: FeaturesOf | None = None) -> ParityReport:
    """Replays about `num_rows` held-out rows; rows that were trained on where nothing is held out."""
    rows = _picked(dataset, num_rows)
    faults = templates.check(replay.served_tokens, dataset.held_out_examples or dataset.train_examples, rows,
                             targets=options.targets, as_text=options.as_text or replay.trained_tokens.chat is None)
    num_sides = 1 if replay.base is None else 2
    with progress_bar.bar("replaying", num_sides * len(rows), "rows") as advance:
        return parity.run(replay.adapted, replay.base, rows, template_faults=faults, tolerance=tolerance,
                          num_templates=len({row.place for row in rows}), features_of=features_of,
                          progress=advance)


def _picked(dataset: Dataset, num_rows: int) -> list[EncodedRow]:
    """Evenly. An example is there with all of its rows or not at all, as templates are compared by example."""
    rows = dataset.held_out or dataset.train
    places = list(dict.fromkeys(row.place for row in rows))
    chosen = set(places[::-(-len(places) // num_rows)])
    return [row for row in rows if row.place in chosen]


def show(report: ParityReport) -> None:
    """The report as a table."""
    table = Table(title=f"parity: {'passed' if report.passed else 'FAILED'}", title_justify="left")
    table.add_column("")
    table.add_column("trained and served", justify="right")
    limits, quality, base = report.tolerance, report.quality, report.base
    if base is not None:
        table.add_column("without the adapter", justify="right")
    columns = [_cells(each) for each in (quality, base) if each is not None]
    names = (f"mean KL (at most {limits.max_mean_kl:g})", "largest KL",
             f"same likeliest token (at least {limits.min_agreement:.0%})", "perplexity: trained, served")
    for cells in zip(names, *columns, strict=True):
        table.add_row(*cells)
    table.add_row("tokens of answers", str(quality.num_tokens))
    table.add_row("conversations with the same tokens",
                  f"{report.num_templates - len(report.template_faults)} of {report.num_templates}")
    Console(width=100).print(table)
    for failure in report.failures:
        terminal.result(f"- {failure}")
    if report.where is not None:
        terminal.result(report.where)


def _cells(quality: QuantQuality) -> list[str]:
    error = "" if quality.kl_error is None else f" ± {quality.kl_error:.5f}"
    return [f"{quality.kl_mean:.5f}{error}", f"{quality.kl_max:.4f}", f"{quality.top1_agreement:.2%}",
            f"{quality.perplexity_original:.4f}, {quality.perplexity_quantised:.4f}"]
