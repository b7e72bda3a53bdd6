"""`brise quantize`: a model in fewer bits, as a GGUF file, and what that did to it."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

from brise import settings
from brise.checkpoint.gguf_projector import has_own_vision, projector_path, write_projector
from brise.checkpoint.imatrix import load_importance, save_importance
from brise.checkpoint.originals import Original, open_original
from brise.checkpoint.staged import refuse_existing
from brise.checkpoint.store import Store, locate
from brise.checkpoint.transcode import BLOCK_BYTES, Written, planned_bytes, refuse_blocks, write_mix
from brise.cli import adapter_options, chat_options, memory_options, progress_bar, quantize_report, terminal
from brise.cli.quantize_runs import Runs, Text
from brise.engine.footprint import keep_small, resident_bytes
from brise.engine.model import num_cores
from brise.engine.scoring import WINDOW
from brise.errors import OutputError, UnsupportedError
from brise.quant.importance import Importance
from brise.quant.quality import Quality
from brise.quant.recipe import MIXES

CALIBRATION_TOKENS, EVALUATION_TOKENS = 65536, 16384


@dataclass(frozen=True)
class Result:
    """All that was done, for the report."""

    original: Original
    written: Written
    importance: Importance | None
    quality: Quality | None
    evaluated: Text | None
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
    report = quantize_report.fields(args, result)
    if args.json:
        terminal.result(json.dumps(report, indent=1))
    else:
        quantize_report.show(report)
    return 0


def _open(args: argparse.Namespace, home: Path) -> Original:
    """A source of blocks is refused before an adapter is merged, which makes float32 of its matrices."""
    located = locate(args.model, Store(home))
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
