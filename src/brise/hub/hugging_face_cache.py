"""Finds models in the cache of the Hugging Face hub's library, which transformers, vLLM and llama.cpp fill.

ROOT/models--OWNER--REPO/refs/main               the commit that `main` was when it was asked for last
ROOT/models--OWNER--REPO/snapshots/COMMIT/FILE   links into ../../blobs, or the files themselves on disks without links

The revision that counts is `main`; without it, the snapshot that was changed last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from brise.checkpoint.model_files import HF_CONFIG, NATIVE_CONFIG, find_layout
from brise.checkpoint.safetensors.read_hf_config import read_config
from brise.checkpoint.safetensors.read_mistral_params import read_params
from brise.errors import BriseError
from brise.files.json_file import parse_json
from brise.hub.found import FoundModel, best_projector, entries, gguf_models, size_of

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PREFIX = "models--"
MAX_CONFIG_BYTES = 1 << 20


def models(root: Path) -> Iterator[FoundModel]:
    """Every .gguf of the cache, and every folder of safetensors that brise runs."""
    for folder in entries(root):
        if not folder.name.startswith(_PREFIX):
            continue
        snapshot = _snapshot(Path(folder.path))
        if snapshot is None:
            continue
        repo = "/".join(folder.name.removeprefix(_PREFIX).split("--", 1))
        card = snapshot / "README.md" if (snapshot / "README.md").is_file() else None
        ggufs = list(gguf_models(snapshot))
        for path, size, projectors in ggufs:
            yield FoundModel("hf", repo, path.name, path, size,
                             best_projector(projectors) if len(projectors) > 1 else None, card)
        if not ggufs and _is_ours(snapshot):
            yield from _folder(repo, snapshot, card)


def _folder(repo: str, snapshot: Path, card: Path | None) -> Iterator[FoundModel]:
    try:
        files = find_layout(snapshot).files
    except BriseError:  # a download that was cut off, or only a tokenizer
        return
    yield FoundModel("hf", repo, "", snapshot, sum(map(size_of, files)), licence_file=card)


def _snapshot(folder: Path) -> Path | None:
    snapshots = {entry.name: Path(entry.path) for entry in entries(folder / "snapshots") if entry.is_dir()}
    try:
        with (folder / "refs" / "main").open("rb") as file:
            commit = file.read(100).decode("ascii", "replace").strip()
    except OSError:
        commit = ""
    if _COMMIT.fullmatch(commit) and commit in snapshots:
        return snapshots[commit]
    return max(snapshots.values(), key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def _is_ours(snapshot: Path) -> bool:
    """Whether brise runs what the folder's configuration describes: most repositories are other things."""
    name = HF_CONFIG if (snapshot / HF_CONFIG).is_file() else NATIVE_CONFIG
    try:
        with (snapshot / name).open("rb") as file:
            values = parse_json(file.read(MAX_CONFIG_BYTES), name)
        (read_config if name == HF_CONFIG else read_params)(values)
    except (OSError, BriseError):
        return False
    return True
