"""`brise export`: a model as a Hugging Face folder or as a plain GGUF file, for other programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from brise import settings
from brise.checkpoint.convert_source import open_original
from brise.checkpoint.export import exported_bytes, plain_format, write_hf
from brise.checkpoint.gguf.write_adapter import write_gguf_adapter
from brise.checkpoint.gguf.write_mmproj import has_own_vision, projector_path, write_projector
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.transcode import planned_bytes, write_mix
from brise.cli import adapter_options, progress_bar, terminal
from brise.errors import OutputError
from brise.files.atomic import refuse_existing
from brise.files.digests import Located
from brise.hub.store import ModelStore, locate

FORMATS = ("hf", "gguf", "gguf-lora")
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
    parser.add_argument("--format", metavar="FORMAT", choices=FORMATS, default="hf",
                        help="hf, a Hugging Face folder; gguf; or gguf-lora, the adapter alone as llama.cpp reads it "
                             "(default: hf)")
    parser.add_argument("--dtype", metavar="DTYPE", choices=DTYPES,
                        help="bf16, f16 or f32 (default: the source's, f16 if its weights are blocks of few bits; "
                             "f32 of an adapter)")
    adapter_options.add_arguments(parser, "an adapter; give --merge as well, or --format gguf-lora")
    parser.add_argument("--merge", action="store_true", help="write the model with the adapter in its weights")
    parser.add_argument("--json", action="store_true", help="print what was written as a JSON object")


def run(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    if args.format != "hf" and args.out.suffix != ".gguf":
        raise OutputError(f"OUT is {str(args.out)!r}, its name must end in .gguf")
    _check_adapter(args)
    located = locate(args.model, ModelStore(settings.read().home))
    report: dict[str, object] = {"model": args.model, "out": str(args.out), "format": args.format}
    if args.adapter is not None:
        report["adapter"] = str(args.adapter)
    report |= _adapter(args, located) if args.format == "gguf-lora" else _model(args, located)
    terminal.result(json.dumps(report, indent=1) if args.json else "\n".join(
        f"{name:<7} {value if not isinstance(value, int) else terminal.size(value)}" for name, value in report.items()))
    return 0


def _model(args: argparse.Namespace, located: Located) -> dict[str, object]:
    """Writes the model; gives what the report says of it."""
    original = open_original(located.path)
    dtype = args.dtype.upper() if args.dtype else plain_format(original)
    original = adapter_options.with_adapter(args, original, located)
    if args.format == "hf":
        with progress_bar.bar("writing", exported_bytes(original, dtype), "bytes") as advance:
            return {"dtype": dtype, "bytes": write_hf(original, args.out, dtype, advance)}
    with progress_bar.bar("writing", planned_bytes(original, dtype), "bytes") as advance:
        report = {"dtype": dtype, "bytes": write_mix(original, args.out, dtype, requantize=True, wrote=advance).size}
    if original.vision is None or has_own_vision(original):
        return report
    write_projector(original, projector_path(args.out))
    return report | {"mmproj": str(projector_path(args.out))}


def _adapter(args: argparse.Namespace, located: Located) -> dict[str, object]:
    """Writes the adapter alone; gives what the report says of it."""
    config, dtype = open_checkpoint(located.path).config, (args.dtype or "f32").upper()
    adapter, lineage = adapter_options.read(args, config, located)
    return {"dtype": dtype, "bytes": write_gguf_adapter(args.out, adapter, lineage, config, dtype)}


def _check_adapter(args: argparse.Namespace) -> None:
    if args.adapter is None:
        for option, is_given in (("--merge", args.merge), ("--any-base", args.any_base),
                                 ("--format gguf-lora", args.format == "gguf-lora")):
            if is_given:
                raise OutputError(f"{option} needs --adapter FOLDER")
    elif args.merge == (args.format == "gguf-lora"):
        raise OutputError("--adapter is given with both --merge and --format gguf-lora" if args.merge
                          else "--adapter is given without a way to export it",
                          hint="give --merge for the model with the adapter in its weights, or --format gguf-lora for "
                               "the adapter alone; PEFT reads the adapter's folder as it is")
