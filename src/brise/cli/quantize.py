"""`brise quantize`: a model in fewer bits, as a GGUF file, and what that did to it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from brise.cli import chat_options, memory_options, terminal
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.cli.progress_bar import TerminalWatcher
from brise.convert.quantize import QuantizeOptions, quantize
from brise.quant.recipe import MIXES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "quantize", help="write a model in fewer bits", allow_abbrev=False,
        description="Write a BF16, F16, F32 or FP8 model as a GGUF file of 4 to 8 bits per weight, which llama.cpp "
                    "reads too, and report what that did to it. docs/guides/quantize.md says how it is done, which "
                    "tensor gets which format, and what the numbers mean.",
        epilog=examples("brise quantize smollm2 smollm2-q8.gguf --to Q8_0 --requantize",
                        "brise quantize ./ministral-3b ministral-3b.gguf --to Q4_K_M --calibration notes.txt "
                        "--evaluate tickets.jsonl"))
    parser.add_argument("model", metavar="MODEL",
                        help="a name of the store, a .gguf file, or a folder with safetensors")
    parser.add_argument("out", metavar="OUT", type=Path, help="the .gguf file to write; it must not be there yet. A "
                                                              "vision encoder goes beside it, into mmproj-OUT")
    parser.add_argument("--to", metavar="MIX", dest="mix", default="Q4_K_M",
                        choices=[mix for mix in MIXES if mix != "F32"],
                        help=f"{', '.join(mix for mix in MIXES if mix != 'F32')} (default: Q4_K_M)")
    parser.add_argument("--calibration", metavar="FILE", type=Path,
                        help="text that shows which weights matter: plain text, or JSON lines with text, messages, or "
                             "prompt and completion; or an importance matrix in a .gguf")
    parser.add_argument("--calibration-tokens", metavar="N", type=chat_options.count,
                        default=QuantizeOptions.calibration_tokens,
                        help=f"tokens of it to use (default: {QuantizeOptions.calibration_tokens})")
    parser.add_argument("--save-importance", metavar="FILE", type=Path,
                        help="write the importance matrix for later use; llama.cpp's tools read it, too")
    parser.add_argument("--evaluate", metavar="FILE", type=Path,
                        help="text (of the same kinds) on which the original and the result are compared")
    parser.add_argument("--evaluation-tokens", metavar="N", type=chat_options.count,
                        default=QuantizeOptions.evaluation_tokens,
                        help=f"tokens of it to use (default: {QuantizeOptions.evaluation_tokens})")
    parser.add_argument("--requantize", action="store_true",
                        help="accept a source that is quantized already, which loses more quality than necessary")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="an adapter to merge into the model before it is quantized; calibration and comparison "
                             "see the merged model")
    parser.add_argument("--any-base", action="store_true",
                        help="accept an adapter whose lineage names another model")
    parser.add_argument("--threads", metavar="N", type=chat_options.count,
                        help="threads of the kernels (default: BRISE_THREADS, or one a core)")
    parser.add_argument("--memory", metavar="SIZE", type=memory_options.size,
                        help="stay within this much memory, such as 4GB (4e9 bytes) or 4GiB, or refuse")
    parser.add_argument("--json", action="store_true", help="print the report as a JSON object")


def run(args: argparse.Namespace) -> int:
    report = quantize(fill(QuantizeOptions, args), TerminalWatcher()).as_json()
    if args.json:
        terminal.result(json.dumps(report, indent=1))
    else:
        show(report)
    return 0


def show(report: Mapping[str, Any]) -> None:
    """The report as a table."""
    formats = ", ".join(f"{count} {format}" for format, count in report["tensors"].items())
    table = Table(title=terminal.harmless(f"{report['out']}: {report['mix']}"), title_justify="left", show_header=False)
    table.add_row("size", f"{terminal.size(report['bytes'])}, tensors of the original "
                          f"{terminal.size(report['original_bytes'])}")
    table.add_row("bits a weight", f"{report['bits_per_weight']:.2f}")
    table.add_row("tensors", formats)
    if report["importance"] is not None:
        source = terminal.harmless(report["importance"]["source"])
        table.add_row("importance", f"{source}, {report['importance']['tokens']} tokens")
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
