"""Writes stores as Ollama, LM Studio, the Hugging Face library and llama.cpp leave them, with tiny models in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

REGISTRY = "manifests/registry.ollama.ai/library"
MEDIA = "application/vnd.ollama.image."
COMMIT = "c" * 40


def blob(root: Path, data: bytes) -> dict[str, object]:
    """The digest and size of a layer, whose blob is written."""
    digest = hashlib.sha256(data).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def ollama(root: Path, name: str, tag: str, layers: Mapping[str, bytes], registry: str = REGISTRY) -> Path:
    """A manifest with these layers (by the end of their media type); gives its path."""
    document = {
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **blob(root, b"{}")},
        "layers": [{"mediaType": MEDIA + kind, **blob(root, data)} for kind, data in layers.items()]}
    path = root / registry / name / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def hugging_face(root: Path, repo: str, files: Mapping[str, bytes], *, links: bool = True, commit: str = COMMIT,
                 is_main: bool = True) -> Path:
    """A repository of the cache at one commit; gives its snapshot. Without `links` the files lie in it."""
    folder = root / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    for part in (snapshot, folder / "blobs", folder / "refs"):
        part.mkdir(parents=True, exist_ok=True)
    if is_main:
        (folder / "refs" / "main").write_text(commit)
    for name, data in files.items():
        if not links:
            (snapshot / name).write_bytes(data)
            continue
        stored = folder / "blobs" / hashlib.sha256(data).hexdigest()
        stored.write_bytes(data)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", stored.name))
    return snapshot


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
