"""Reads Ollama's model store: which models it holds, and which files they are.

ROOT/manifests/REGISTRY/NAMESPACE/NAME/TAG   JSON: the layers of a model, each with a media type, a digest and a size
ROOT/blobs/sha256-HEX                        the layers

Of the layers brise takes the model (GGUF) and the projector (the vision encoder, GGUF). A template (Go's, not Jinja's:
the GGUF has the model's own), parameters, a system prompt and messages are Ollama's and are said to be left out. An
adapter changes the weights, so a model with one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brise.errors import BriseError, CheckpointError
from brise.files.json_file import parse_json
from brise.hub.found import FoundModel, entries, size_of

MAX_MANIFEST_BYTES = 1 << 18
LIBRARY = "registry.ollama.ai/library/"
REGISTRY = "registry.ollama.ai/"
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MEDIA = "application/vnd.ollama.image."
_LEFT_OUT = ("template", "params", "system", "messages", "prompt")


@dataclass(frozen=True)
class _Layer:
    kind: str  # the media type without _MEDIA
    path: Path
    size: int


def models(root: Path) -> Iterator[FoundModel]:
    """Every model of the store; one that cannot be used says why in `problem`."""
    for registry in entries(root / "manifests"):
        for namespace in entries(Path(registry.path)):
            for name in entries(Path(namespace.path)):
                for tag in entries(Path(name.path)):
                    if tag.is_file():
                        repo = f"{registry.name}/{namespace.name}/{name.name}"
                        yield _model(root, repo.removeprefix(LIBRARY).removeprefix(REGISTRY), tag.name, Path(tag.path))


def _model(root: Path, repo: str, tag: str, manifest: Path) -> FoundModel:
    try:
        layers = _layers(root, manifest)
    except (OSError, BriseError) as error:
        return FoundModel("ollama", repo, tag, manifest, problem=f"its manifest {manifest} cannot be read: "
                          + str(error).partition("\n")[0])
    own = {layer.kind: layer for layer in reversed(layers)}
    weights, projector, licence = (own.get(kind) for kind in ("model", "projector", "license"))
    return FoundModel(
        "ollama", repo, tag, manifest if weights is None else weights.path,
        size=sum(layer.size for layer in (weights, projector) if layer is not None),
        projector=None if projector is None else projector.path,
        licence_file=None if licence is None else licence.path,
        left_out=tuple(kind for kind in _LEFT_OUT if kind in own),
        problem=_problem(f"{repo}:{tag}", own, [layer for layer in layers if layer.kind == "model"]))


def _problem(name: str, own: dict[str, _Layer], weights: list[_Layer]) -> str:
    if "adapter" in own:
        return ("it puts an adapter on its model, which brise does not read; use the model that it was made from, or "
                "train an adapter of your own")
    if len(weights) != 1:
        return f"it has {len(weights)} layers of GGUF weights, 1 is allowed"
    for layer in (own["model"], own.get("projector")):
        if layer is not None and size_of(layer.path) != layer.size:
            state = f"has {size_of(layer.path)} bytes instead of {layer.size}" if layer.path.is_file() else "is missing"
            return f"its file {layer.path} {state}; get it again: ollama pull {name}"
    return ""


def _layers(root: Path, manifest: Path) -> list[_Layer]:
    with manifest.open("rb") as file:
        data = file.read(MAX_MANIFEST_BYTES + 1)
    if len(data) > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"it is longer than {MAX_MANIFEST_BYTES} bytes", field="size", limit=MAX_MANIFEST_BYTES)
    listed = parse_json(data, manifest.name).get("layers")
    if not isinstance(listed, list):
        raise CheckpointError("it has no list of layers", field="layers", limit="a list")
    return [layer for layer in (_layer(root, item) for item in listed) if layer is not None]


def _layer(root: Path, item: object) -> _Layer | None:
    """One layer; None for one of another tool's media type."""
    fields = item if isinstance(item, dict) else {}
    kind, digest, size = fields.get("mediaType"), fields.get("digest"), fields.get("size")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if not isinstance(kind, str) or match is None or isinstance(size, bool) or not isinstance(size, int):
        raise CheckpointError("a layer has no media type, digest and size", field="layers",
                              limit="sha256 and 64 hexadecimal digits, and a number")
    if not kind.startswith(_MEDIA):
        return None
    return _Layer(kind.removeprefix(_MEDIA), root / "blobs" / f"sha256-{match[1]}", size)
