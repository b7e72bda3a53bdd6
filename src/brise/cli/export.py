"""`brise export`: a model as a Hugging Face folder or as a plain GGUF file, for other programs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.cli.progress_bar import TerminalWatcher
from brise.convert.export import ExportOptions, export

FORMATS = ("hf", "gguf", "gguf-lora")
DTYPES = ("bf16", "f16", "f32")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "export", help="write a model for other programs", allow_abbrev=False,
        description="Write a model in a plain number format, for other programs: as a Hugging Face safetensors folder, "
                    "or as a GGUF file. Blocks and FP8 are decoded, which makes a file larger and no better. With "
                    "--adapter and --merge an adapter goes into the weights (docs/guides/tune.md).",
        epilog=examples("brise export smollm2 ./smollm2-hf --dtype bf16",
                        "brise export smollm2 smollm2-f16.gguf --format gguf --dtype f16"))
    parser.add_argument("model", metavar="MODEL",
                        help="a name of the store, a .gguf file, or a folder with safetensors")
    parser.add_argument("out", metavar="OUT", type=Path,
                        help="the folder (hf) or .gguf file (gguf) to write; it must not be there yet")
    parser.add_argument("--format", metavar="FORMAT", choices=FORMATS, default="hf",
                        help="hf: config.json, safetensors (sharded over 5 GB, with index), tokenizer files; gguf; or "
                             "gguf-lora, the adapter alone as llama.cpp reads it (default: hf)")
    parser.add_argument("--dtype", metavar="DTYPE", choices=DTYPES,
                        help="bf16, f16 or f32 (default: the source's, f16 if its weights are blocks of few bits; "
                             "f32 of an adapter)")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="an adapter in PEFT's layout; give --merge as well, or --format gguf-lora")
    parser.add_argument("--any-base", action="store_true",
                        help="accept an adapter whose lineage names another model")
    parser.add_argument("--merge", action="store_true", help="write the model with the adapter in its weights")
    parser.add_argument("--json", action="store_true", help="print what was written as a JSON object")


def run(args: argparse.Namespace) -> int:
    exported = export(fill(ExportOptions, args), TerminalWatcher())
    report: dict[str, object] = {"model": args.model, "out": str(args.out), "format": args.format}
    if args.adapter is not None:
        report["adapter"] = str(args.adapter)
    report |= {"dtype": exported.dtype, "bytes": exported.num_bytes}
    if exported.mmproj is not None:
        report["mmproj"] = str(exported.mmproj)
    terminal.result(json.dumps(report, indent=1) if args.json else "\n".join(
        f"{name:<7} {value if not isinstance(value, int) else terminal.size(value)}" for name, value in report.items()))
    return 0
