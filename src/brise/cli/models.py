"""`brise models`: lists, shows and removes models of the store."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from dataclasses import asdict

from brise import settings
from brise.checkpoint.open import num_parameters, open_checkpoint
from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.errors import BriseError, StoreError
from brise.hub.store import ModelStore, StoredModel
from brise.models.config import Config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "models", help="list, show and remove models of the store", allow_abbrev=False,
        description="List, show and remove models of the store. Without an action: list.",
        epilog=examples("brise models"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="list all models", allow_abbrev=False,
                                 description="List all models of the store, one per line.",
                                 epilog=examples("brise models list",
                                                 "brise models list --json"))
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    show = actions.add_parser("show", help="show one model", allow_abbrev=False,
                              description="Show where a model came from, where its file lies, and what it is.",
                              epilog=examples("brise models show smollm2",
                                              "brise models show smollm2 --json"))
    show.add_argument("name", metavar="NAME", help="a name from `brise models`")
    show.add_argument("--json", action="store_true", help="print a JSON object")
    remove = actions.add_parser("remove", help="remove models", allow_abbrev=False,
                                description="Remove models from the store, and their files if no other name uses them. "
                                            "A running process keeps its model.",
                                epilog=examples("brise models remove smollm2"))
    remove.add_argument("name", metavar="NAME", nargs="+", help="a name from `brise models`")


def run(args: argparse.Namespace) -> int:
    store = ModelStore(settings.read().home)
    match args.action:
        case None:
            return _list(store, as_json=False)
        case "list":
            return _list(store, args.json)
        case "show":
            return _show(store, args.name, args.json)
        case _:
            return _remove(store, args.name)


def _list(store: ModelStore, as_json: bool) -> int:
    """Lists all models. A damaged entry is reported and does not hide the others."""
    entries: list[StoredModel] = []
    status = 0
    for name in store.names():
        try:
            entries.append(store.get(name))
        except StoreError as error:
            terminal.note(f"brise: error: {error}")
            status = 1
    if as_json:
        terminal.result(json.dumps([asdict(entry) for entry in entries], indent=1))
        return status
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        terminal.result(f"{entry.name:<{width}}  {terminal.size(entry.size):>9}  sha256:{entry.digest[:12]}"
                        f"  {entry.added}  {entry.source}")
    if not entries and status == 0:
        terminal.note("the store is empty; get a model with: brise pull smollm2")
    return status


def _show(store: ModelStore, name: str, as_json: bool) -> int:
    entry = store.get(name)
    path = store.path(entry)
    with closing(open_checkpoint(path)) as checkpoint:
        config, formats, num_values = checkpoint.config, sorted(checkpoint.formats()), num_parameters(checkpoint)
    fields: dict[str, object] = {**asdict(entry), "path": str(path), "parameters": num_values,
                                 "formats": formats, "config": _config_fields(config)}
    if as_json:
        terminal.result(json.dumps(fields, indent=1))
        return 0
    fields.update(_config_fields(config), formats=", ".join(formats),
                  files=", ".join(file.name for file in entry.files) or "1")
    del fields["config"]
    for key, value in fields.items():
        terminal.result(f"{key:<12}  {value}")
    return 0


def _config_fields(config: Config) -> dict[str, object]:
    return {"family": config.family, "layers": config.num_layers, "width": config.width,
            "heads": config.num_heads, "kv_heads": config.num_kv_heads, "head_dim": config.head_dim,
            "ffn_width": config.ffn_width, "vocabulary": config.vocab_size, "max_context": config.max_context}


def _remove(store: ModelStore, names: list[str]) -> int:
    status = 0
    for name in names:
        try:
            store.remove(name)
            terminal.note(f"removed {name}")
        except BriseError as error:
            terminal.note(f"brise: error: {error}")
            status = 1
    return status
