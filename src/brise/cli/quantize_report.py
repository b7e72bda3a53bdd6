"""The report of `brise quantize`: what was written, and how it differs from the original."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from brise.cli import terminal
from brise.engine.footprint import peak_bytes
from brise.quant.rows import format_of, matrix_shape, row_bytes

if TYPE_CHECKING:
    from brise.cli.quantize import Result


def fields(args: argparse.Namespace, result: Result) -> dict[str, Any]:
    """Everything, as --json prints it."""
    written, importance = result.written, result.importance
    return {
        "model": str(args.model), "out": str(args.out), "mix": args.to,
        "original_bytes": _tensor_bytes(result), "bytes": written.size, "weights": written.num_weights,
        "bits_per_weight": written.bits_per_weight, "tensors": dict(written.formats),
        "importance": None if importance is None else {
            "source": importance.source, "tokens": importance.num_tokens, "tensors": len(importance.sums)},
        "quality": None if result.quality is None or result.evaluated is None else {
            "text": str(result.evaluated.path), "tokens_used": result.evaluated.num_tokens,
            "tokens_in_text": result.evaluated.total_tokens} | asdict(result.quality),
        "seconds": result.seconds, "peak_memory_bytes": peak_bytes()}


def show(report: Mapping[str, Any]) -> None:
    """The same as a table."""
    formats = ", ".join(f"{count} {format}" for format, count in report["tensors"].items())
    table = Table(title=f"{report['out']}: {report['mix']}", title_justify="left", show_header=False)
    table.add_row("size", f"{terminal.size(report['bytes'])}, tensors of the original "
                          f"{terminal.size(report['original_bytes'])}")
    table.add_row("bits a weight", f"{report['bits_per_weight']:.2f}")
    table.add_row("tensors", formats)
    if report["importance"] is not None:
        table.add_row("importance", f"{report['importance']['source']}, {report['importance']['tokens']} tokens")
    if report["quality"] is not None:
        _add_quality(table, report["quality"])
    table.add_row("time, peak memory", f"{report['seconds']:.1f} s, {terminal.size(report['peak_memory_bytes'])}")
    Console(width=110).print(table)


def _add_quality(table: Table, quality: Mapping[str, Any]) -> None:
    change = quality["perplexity_quantised"] / quality["perplexity_original"] - 1
    error = "" if quality["kl_error"] is None else f" ± {quality['kl_error']:.5f} (standard error)"
    table.add_row("compared on", f"{quality['num_tokens']} predictions in {quality['num_windows']} windows of "
                                 f"{quality['text']}")
    table.add_row("perplexity", f"{quality['perplexity_original']:.3f} original, "
                                f"{quality['perplexity_quantised']:.3f} quantised ({change:+.2%})")
    table.add_row("KL, mean", f"{quality['kl_mean']:.5f}{error}")
    table.add_row("KL, maximum", f"{quality['kl_max']:.3f}")
    table.add_row("same best token", f"{quality['top1_agreement']:.2%}")


def _tensor_bytes(result: Result) -> int:
    total = 0
    for tensor in result.original.tensors:
        rows, cols = matrix_shape(tensor.weight.shape)
        total += rows * row_bytes(format_of(tensor.weight), cols)
    return total
