"""`brise quantize`: a model in fewer bits, as a GGUF file, and what that did to it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from brise import settings
from brise.backends import num_cores
from brise.checkpoint.convert_source import Original, open_original
from brise.checkpoint.gguf.imatrix import load_importance, save_importance
from brise.checkpoint.gguf.write_mmproj import has_own_vision, projector_path, write_projector
from brise.checkpoint.transcode import BLOCK_BYTES, Written, planned_bytes, refuse_blocks, write_mix
from brise.cli import adapter_options, chat_options, memory_options, progress_bar, terminal
from brise.cli.quantize_runs import Runs, TokenWindows
from brise.engine.scoring import WINDOW
from brise.errors import OutputError, UnsupportedError
from brise.files.atomic import refuse_existing
from brise.hub.store import ModelStore, locate
from brise.memory.process import keep_small, peak_bytes, resident_bytes
from brise.quant.importance import Importance
from brise.quant.quality import QuantQuality
from brise.quant.recipe import MIXES
from brise.quant.rows import format_of, matrix_shape, row_bytes

CALIBRATION_TOKENS, EVALUATION_TOKENS = 65536, 16384


@dataclass(frozen=True)
class Result:
    """All that was done, for the report."""

    original: Original
    written: Written
    importance: Importance | None
    quality: QuantQuality | None
    evaluated: TokenWindows | None
    seconds: float


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "quantize", help="write a model in fewer bits", allow_abbrev=False,
        description="Write a BF16, F16, F32 or FP8 model as a GGUF file of 4 to 8 bits, which llama.cpp reads too, "
                    "and report what that did to it.",
        epilog="example: brise quantize ./ministral-3b ministral-3b.gguf --to Q4_K_M --calibration notes.txt "
               "--evaluate tickets.jsonl")
    parser.add_argument("model", metavar="MODEL",
                        help="a name of the store, a .gguf file, or a folder with safetensors")
    parser.add_argument("out", metavar="OUT", type=Path, help="the .gguf file to write; it must not be there yet")
    parser.add_argument("--to", metavar="MIX", choices=[mix for mix in MIXES if mix != "F32"], default="Q4_K_M",
                        help="Q4_K_M, Q4_K_S, Q4_0, Q4_1, Q5_0, Q5_1, Q5_K_M, Q6_K, Q8_0, F16 or BF16 "
                             "(default: Q4_K_M)")
    parser.add_argument("--calibration", metavar="FILE", type=Path,
                        help="text (or .jsonl) that shows which weights matter, or an importance matrix in a .gguf")
    parser.add_argument("--calibration-tokens", metavar="N", type=chat_options.count, default=CALIBRATION_TOKENS,
                        help=f"tokens of it to use (default: {CALIBRATION_TOKENS})")
    parser.add_argument("--save-importance", metavar="FILE", type=Path,
                        help="write the importance matrix, to use it again; llama.cpp's tools read it")
    parser.add_argument("--evaluate", metavar="FILE", type=Path,
                        help="text (or .jsonl) on which original and result are compared")
    parser.add_argument("--evaluation-tokens", metavar="N", type=chat_options.count, default=EVALUATION_TOKENS,
                        help=f"tokens of it to use (default: {EVALUATION_TOKENS})")
    parser.add_argument("--requantize", action="store_true",
                        help="take a source that is quantised already, which loses more than it had to")
    adapter_options.add_arguments(parser, "an adapter, which is merged into the model before it is quantised")
    parser.add_argument("--threads", metavar="N", type=chat_options.count,
                        help="threads of the kernels (default: BRISE_THREADS, or one a core)")
    parser.add_argument("--memory", metavar="SIZE", type=memory_options.size,
                        help="stay within so much memory, such as 4GB or 4GiB, or refuse")
    parser.add_argument("--json", action="store_true", help="print the report as a JSON object")


def run(args: argparse.Namespace) -> int:
    settings_ = settings.read()
    _check_outputs(args)
    if args.memory is not None:
        keep_small()
    original = _open(args, settings_.home)
    runs = Runs(original, args.threads or settings_.threads or num_cores(), args.memory)
    started = time.perf_counter()
    text = None
    if args.evaluate is not None:
        text = runs.text(args.evaluate, args.evaluation_tokens)
        runs.check_evaluation()
    importance = _importance(args, runs)
    written = _write(args, original, importance, runs.num_threads)
    quality = None if text is None else runs.evaluate(text, written.path)
    result = Result(original, written, importance, quality, text, time.perf_counter() - started)
    report = fields(args, result)
    if args.json:
        terminal.result(json.dumps(report, indent=1))
    else:
        show(report)
    return 0


def _open(args: argparse.Namespace, home: Path) -> Original:
    """A source of blocks is refused before an adapter is merged, which makes float32 of its matrices."""
    located = locate(args.model, ModelStore(home))
    original = open_original(located.path)
    if not args.requantize:
        refuse_blocks(original, args.to if args.adapter is None else "F32")
    return adapter_options.with_adapter(args, original, located)


def _check_outputs(args: argparse.Namespace) -> None:
    """Better before the calibration than after."""
    for path in (args.out, projector_path(args.out), args.save_importance):
        if path is not None:
            refuse_existing(path)
    if args.out.suffix != ".gguf":
        raise OutputError(f"OUT is {str(args.out)!r}, its name must end in .gguf")


def _importance(args: argparse.Namespace, runs: Runs) -> Importance | None:
    if args.calibration is None:
        if args.save_importance is not None:
            raise OutputError("--save-importance needs --calibration FILE, there is nothing to save")
        return None
    if args.calibration.suffix == ".gguf":
        return load_importance(args.calibration)
    importance = runs.calibrate(runs.text(args.calibration, args.calibration_tokens))
    if args.save_importance is not None:
        save_importance(args.save_importance, importance, WINDOW)
    return importance


def _write(args: argparse.Namespace, original: Original, importance: Importance | None, threads: int) -> Written:
    if args.memory is not None and resident_bytes() + BLOCK_BYTES > args.memory:
        raise UnsupportedError(f"quantising needs {terminal.size(resident_bytes() + BLOCK_BYTES)}, --memory allows "
                               f"{terminal.size(args.memory)}")
    with progress_bar.bar("writing", planned_bytes(original, args.to), "bytes") as advance:
        written = write_mix(original, args.out, args.to, importance, requantize=args.requantize, threads=threads,
                            wrote=advance)
    if original.vision is not None and not has_own_vision(original):
        write_projector(original, projector_path(args.out))
    return written


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
