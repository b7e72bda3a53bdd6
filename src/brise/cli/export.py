"""`brise export`: a model as a Hugging Face folder or as a plain GGUF file, or all that another engine needs."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.cli.progress_bar import TerminalWatcher
from brise.convert.engines import ENGINES, EngineExportOptions, export_for
from brise.convert.export import ExportOptions, export
from brise.errors import OutputError

FORMATS = ("hf", "gguf", "gguf-lora")
DTYPES = ("bf16", "f16", "f32")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "export", help="write a model for other programs", allow_abbrev=False,
        description="Write a model in a plain number format, for other programs: as a Hugging Face safetensors folder, "
                    "or as a GGUF file. Blocks and FP8 are decoded, which makes a file larger and no better. With "
                    "--adapter and --merge an adapter goes into the weights. --for writes a folder for another engine, "
                    "with the command that serves it (docs/guides/tune.md).",
        epilog=examples("brise export smollm2 ./smollm2-hf --dtype bf16",
                        "brise export smollm2 smollm2-f16.gguf --format gguf --dtype f16",
                        "brise export smollm2 ./tickets-vllm --for vllm --adapter tickets-smollm2/adapter"))
    parser.add_argument("model", metavar="MODEL",
                        help="a name of the store, a .gguf file, or a folder with safetensors")
    parser.add_argument("out", metavar="OUT", type=Path,
                        help="the folder (hf) or .gguf file (gguf) to write; it must not be there yet")
    parser.add_argument("--format", metavar="FORMAT", choices=FORMATS,
                        help="hf: config.json, safetensors (sharded over 5 GB, with index), tokenizer files; gguf; or "
                             "gguf-lora, the adapter alone as llama.cpp reads it (default: hf)")
    parser.add_argument("--for", metavar="ENGINE", choices=ENGINES, dest="engine",
                        help="write what vllm, llama.cpp or ollama needs into the folder OUT: model, adapter (alone "
                             "without --merge), chat template, and serve.sh, which serves them")
    parser.add_argument("--name", metavar="NAME",
                        help="with --for: what the server calls it (default: the run's or the model's name)")
    parser.add_argument("--dtype", metavar="DTYPE", choices=DTYPES,
                        help="bf16, f16 or f32 (default: the source's, f16 if its weights are blocks of few bits; "
                             "f32 of an adapter)")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path,
                        help="an adapter in PEFT's layout; give --merge as well, or --format gguf-lora, or --for")
    parser.add_argument("--any-base", action="store_true",
                        help="accept an adapter whose lineage names another model")
    parser.add_argument("--merge", action="store_true", help="write the model with the adapter in its weights")
    parser.add_argument("--json", action="store_true", help="print what was written as a JSON object")


def run(args: argparse.Namespace) -> int:
    if args.engine is not None:
        return _run_for_engine(args)
    if args.name is not None:
        raise OutputError("--name needs --for ENGINE")
    exported = export(fill(ExportOptions, args, {"format": args.format or "hf"}), TerminalWatcher())
    report: dict[str, object] = {"model": args.model, "out": str(args.out), "format": args.format or "hf"}
    if args.adapter is not None:
        report["adapter"] = str(args.adapter)
    report |= {"dtype": exported.dtype, "bytes": exported.num_bytes}
    if exported.mmproj is not None:
        report["mmproj"] = str(exported.mmproj)
    terminal.result(json.dumps(report, indent=1) if args.json else "\n".join(
        f"{name:<7} {value if not isinstance(value, int) else terminal.size(value)}" for name, value in report.items()))
    return 0


def _run_for_engine(args: argparse.Namespace) -> int:
    if args.format is not None:
        raise OutputError("--format and --for are both given: an engine has its own format")
    exported = export_for(fill(EngineExportOptions, args), TerminalWatcher())
    if args.json:
        terminal.result(json.dumps({**asdict(exported), "out": str(exported.out), "files": dict(exported.files)},
                                   indent=1))
        return 0
    for name, num_bytes in exported.files:
        terminal.result(f"{terminal.size(num_bytes):>8}  {exported.out / name}")
    for note in exported.notes:
        terminal.result(note)
    terminal.result(f"next: {exported.command}")
    return 0
