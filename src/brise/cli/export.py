"""`brise export`: a model as a Hugging Face folder or as a plain GGUF file, for other programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from brise import settings
from brise.checkpoint.export import exported_bytes, plain_format, write_hf
from brise.checkpoint.gguf_projector import has_own_vision, projector_path, write_projector
from brise.checkpoint.originals import open_original
from brise.checkpoint.staged import refuse_existing
from brise.checkpoint.store import Store, locate
from brise.checkpoint.transcode import planned_bytes, write_mix
from brise.cli import progress_bar, terminal
from brise.errors import OutputError

DTYPES = ("bf16", "f16", "f32")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "export", help="write a model for other programs", allow_abbrev=False,
        description="Write a model in a plain number format, for other programs: as a Hugging Face safetensors folder, "
                    "or as a GGUF file. Blocks and FP8 are decoded, which makes a file larger and no better.",
        epilog="example: brise export smollm2 ./smollm2-hf --format hf --dtype bf16")
    parser.add_argument("model", metavar="MODEL",
                        help="a name of the store, a .gguf file, or a folder with safetensors")
    parser.add_argument("out", metavar="OUT", type=Path,
                        help="the folder (hf) or .gguf file (gguf) to write; it must not be there yet")
    parser.add_argument("--format", metavar="FORMAT", choices=("hf", "gguf"), default="hf",
                        help="hf, a Hugging Face folder, or gguf (default: hf)")
    parser.add_argument("--dtype", metavar="DTYPE", choices=DTYPES,
                        help="bf16, f16 or f32 (default: the source's; f16 if its weights are blocks of few bits)")
    parser.add_argument("--json", action="store_true", help="print what was written as a JSON object")


def run(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if args.format == "gguf" and args.out.suffix != ".gguf":
        raise OutputError(f"OUT is {str(args.out)!r}, its name must end in .gguf")
    original = open_original(locate(args.model, Store(settings.read().home)).path)
    dtype = args.dtype.upper() if args.dtype else plain_format(original)
    report: dict[str, object] = {"model": args.model, "out": str(args.out), "format": args.format, "dtype": dtype}
    if args.format == "hf":
        with progress_bar.bar("writing", exported_bytes(original, dtype), "bytes") as advance:
            report["bytes"] = write_hf(original, args.out, dtype, advance)
    else:
        with progress_bar.bar("writing", planned_bytes(original, dtype), "bytes") as advance:
            report["bytes"] = write_mix(original, args.out, dtype, requantize=True, wrote=advance).size
        if original.vision is not None and not has_own_vision(original):
            report["mmproj"] = str(projector_path(args.out))
            write_projector(original, projector_path(args.out))
    terminal.result(json.dumps(report, indent=1) if args.json else "\n".join(
        f"{name:<7} {value if not isinstance(value, int) else terminal.size(value)}" for name, value in report.items()))
    return 0
