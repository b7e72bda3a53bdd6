"""`brise models`: lists, shows and removes models of the store, searches what can be pulled by name, and prunes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path

from brise import settings
from brise.checkpoint.open import num_parameters, open_checkpoint
from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.errors import BriseError, StoreError
from brise.files.digests import disk_errors
from brise.hub.found import TOOLS, FoundModel, licence_of
from brise.hub.listed import search
from brise.hub.locate import locate
from brise.hub.other_stores import OtherStores
from brise.hub.packed import PackedFolder
from brise.hub.store import ModelStore, StoredModel
from brise.models.config import Config


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "models", help="list, search, show and remove models", allow_abbrev=False,
        description="List, search, show and remove models, and prune what is kept for faster starts. Without an "
                    "action: list.",
        epilog=examples("brise models"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="list all models on this machine", allow_abbrev=False,
                                 description="List all models of the store, and those that Ollama, LM Studio, "
                                             "llama.cpp and the Hugging Face cache keep here, one per line.",
                                 epilog=examples("brise models list",
                                                 "brise models list --json"))
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    search = actions.add_parser("search", help="list what can be pulled by name", allow_abbrev=False,
                                description="List the models that `brise pull` knows by name: size, context, licence, "
                                            "what they are good at. Then the models on this machine.",
                                epilog=examples("brise models search",
                                                "brise models search tools apache"))
    search.add_argument("words", metavar="WORD", nargs="*", help="all of them must occur (default: all models)")
    search.add_argument("--json", action="store_true", help="print a JSON array")
    show = actions.add_parser("show", help="show one model", allow_abbrev=False,
                              description="Show where a model came from, where its file lies, and what it is.",
                              epilog=examples("brise models show smollm2",
                                              "brise models show smollm2 --json"))
    show.add_argument("name", metavar="NAME", help="a name from `brise models list`")
    show.add_argument("--json", action="store_true", help="print a JSON object")
    remove = actions.add_parser("remove", help="remove models", allow_abbrev=False,
                                description="Remove models from the store, and their files if no other name uses them. "
                                            "A running process keeps its model.",
                                epilog=examples("brise models remove smollm2"))
    remove.add_argument("name", metavar="NAME", nargs="+", help="a name from `brise models`")
    prune = actions.add_parser("prune", help="delete packed weights that are of no use", allow_abbrev=False,
                               description="Delete packed weights whose model is gone or was changed. Packed weights "
                                           "make the second start of a model faster; brise writes them by itself, and "
                                           "deletes those that were not used for the longest time where they take more "
                                           "than BRISE_PACKED_CACHE allows. A running process keeps its own.",
                               epilog=examples("brise models prune",
                                               "brise models prune --all"))
    prune.add_argument("--all", action="store_true", help="delete all of them")
    prune.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    settings_ = settings.read()
    store = ModelStore(settings_.home)
    others = OtherStores(settings_.home, settings_.tools)
    match args.action:
        case None:
            return _list(store, others, as_json=False)
        case "list":
            return _list(store, others, args.json)
        case "search":
            return _search(store, others, args.words, args.json)
        case "show":
            return _show(store, others, args.name, args.json)
        case "prune":
            return _prune(PackedFolder.in_home(settings_.home), everything=args.all, as_json=args.json)
        case _:
            return _remove(store, args.name)


def _list(store: ModelStore, others: OtherStores, as_json: bool) -> int:
    """Lists all models. A damaged entry is reported and does not hide the others."""
    entries: list[StoredModel] = []
    status = 0
    for name in store.names():
        try:
            entries.append(store.get(name))
        except StoreError as error:
            terminal.note(f"brise: error: {error}")
            status = 1
    found = others.models()
    if as_json:
        terminal.result(json.dumps([{**asdict(entry), "origin": "brise"} for entry in entries]
                                   + [_found_fields(model) for model in found], indent=1))
        return status
    names = [*(entry.name for entry in entries), *(model.name for model in found)]
    width = max(map(len, names), default=0)
    for entry in entries:
        terminal.result(f"{entry.name:<{width}}  {terminal.size(entry.size):>9}  sha256:{entry.digest[:12]}"
                        f"  {entry.added}  {entry.source}")
    for model in found:
        state = f"cannot be used: {model.problem}" if model.problem else str(model.path)
        terminal.result(f"{model.name:<{width}}  {terminal.size(model.size):>9}  {TOOLS[model.origin]}  {state}")
    packed = PackedFolder.in_home(store.root).files()
    if packed:
        terminal.note(f"packed weights for faster starts: {terminal.size(sum(file.nbytes for file in packed))} "
                      "(brise models prune)")
    if not entries and not found and status == 0:
        terminal.note("the store is empty; get a model with: brise pull smollm2")
    return status


def _found_fields(model: FoundModel) -> dict[str, object]:
    return {"name": model.name, "origin": model.origin, "size": model.size, "path": str(model.path),
            "projector": None if model.projector is None else str(model.projector), "problem": model.problem or None}


def _search(store: ModelStore, others: OtherStores, words: list[str], as_json: bool) -> int:
    """What can be pulled by name first, then what is on this machine and has the words in its name."""
    here = set(store.names())
    models = search(words)
    local = [name for name in (*sorted(here), *(model.name for model in others.models()))
             if all(word.lower() in name.lower() for word in words)]
    if as_json:
        terminal.result(json.dumps([
            {"name": model.title, "size": model.size, "context": model.context, "licence": model.licence.name,
             "licence_url": model.licence.url, "limits": model.licence.limits, "good_at": model.good_at,
             "digest": model.digest, "source": model.reference, "revision": model.revision,
             "here": model.store_name in here} for model in models], indent=1))
        return 0
    width = max((len(model.title) for model in models), default=0)
    for model in models:
        mark = "here" if model.store_name in here else ""
        licence = model.licence.name + (" (limits use)" if model.licence.limits else "")
        terminal.result(f"{model.title:<{width}}  {terminal.size(model.size):>9}  {model.context:>7} tokens  {mark:<4}"
                        f"  {licence}: {model.good_at}")
    if local:
        terminal.note(f"on this machine: {', '.join(local)}")
    if not models and not local:
        terminal.note(f"no model has all of: {' '.join(words)}")
    return 0 if models or local else 1


def _show(store: ModelStore, others: OtherStores, name: str, as_json: bool) -> int:
    """A model of the store or of another tool."""
    fields, path, num_files = _where(store, others, name)
    with closing(open_checkpoint(path)) as checkpoint:
        config, formats, num_values = checkpoint.config, sorted(checkpoint.formats()), num_parameters(checkpoint)
        fields["licence"] = fields["licence"] or _stated_licence(checkpoint.metadata)
    fields |= {"path": str(path), "parameters": num_values, "formats": formats, "config": _config_fields(config)}
    if as_json:
        terminal.result(json.dumps(fields, indent=1))
        return 0
    fields.update(_config_fields(config), formats=", ".join(formats), files=num_files,
                  licence=fields["licence"] or "not stated")
    del fields["config"]
    for key, value in fields.items():
        terminal.result(f"{key:<12}  {value}")
    return 0


def _where(store: ModelStore, others: OtherStores, name: str) -> tuple[dict[str, object], Path, str]:
    """What is known of a model without opening it, its path, and its files in words."""
    located = locate(name, store, others)
    if located.digest is not None:
        entry = store.get(located.name)
        return asdict(entry), located.path, ", ".join(file.name for file in entry.files) or "1"
    found = others.find(name)
    if found is None:
        return {"name": located.name, "licence": ""}, located.path, "1"
    model, _ = found
    left_out = {"left_out": ", ".join(model.left_out)} if model.left_out else {}
    return {"name": model.name, "origin": model.origin, "size": model.size, "licence": licence_of(model),
            **left_out}, located.path, "1" if model.projector is None else "1, and a vision encoder"


def _stated_licence(metadata: Mapping[str, object]) -> str:
    """What a GGUF file says of its licence."""
    texts = [metadata.get(key) for key in ("general.license", "general.license.name", "general.license.link")]
    return ", ".join(text[:200] for text in texts if isinstance(text, str) and text)


def _config_fields(config: Config) -> dict[str, object]:
    return {"family": config.family, "layers": config.num_layers, "width": config.width,
            "heads": config.num_heads, "kv_heads": config.num_kv_heads, "head_dim": config.head_dim,
            "ffn_width": config.ffn_width, "vocabulary": config.vocab_size, "max_context": config.max_context}


def _prune(folder: PackedFolder, *, everything: bool, as_json: bool) -> int:
    """Deletes packed weights, and says what remains."""
    with disk_errors(folder.folder):
        removed, kept = folder.prune(everything=everything)
    if as_json:
        terminal.result(json.dumps({kind: [{
            "path": str(file.path), "size": file.nbytes, "sources": file.sources, "problem": file.problem or None,
        } for file in files] for kind, files in (("removed", removed), ("kept", kept))}, indent=1))
        return 0
    for kind, files in (("removed", removed), ("kept", kept)):
        for file in files:
            of = f"of {file.sources[0]}" if file.sources else "of an unknown model"
            terminal.result(f"{kind:<7}  {terminal.size(file.nbytes):>9}  {of}"
                            + (f": {file.problem}" if file.problem else ""))
    if not removed and not kept:
        terminal.note("there are no packed weights")
    return 0


def _remove(store: ModelStore, names: list[str]) -> int:
    status = 0
    for name in names:
        try:
            store.remove(name)
            terminal.note(f"removed {name}")
        except BriseError as error:
            terminal.note(f"brise: error: {error}")
            status = 1
    with suppress(OSError):  # of what was removed; they are deleted later otherwise
        PackedFolder.in_home(store.root).prune()
    return status
