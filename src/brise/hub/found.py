"""Models that other tools keep on this machine: what one is, and which of several a name means.

They are used where they lie. Nothing is written into the tools' folders, and none of their files is trusted: listings
stop at MAX_ENTRIES, and a link is followed only into a folder of one of these tools (`is_inside`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from brise.checkpoint.gguf.file import PART
from brise.checkpoint.model_files import is_projector, without_part
from brise.errors import StoreError

Origin = Literal["ollama", "lmstudio", "hf", "llama.cpp"]
ORIGINS: Sequence[Origin] = ("ollama", "lmstudio", "hf", "llama.cpp")  # in this order a plain name is looked up
TOOLS: Mapping[Origin, str] = MappingProxyType({
    "ollama": "Ollama", "lmstudio": "LM Studio", "hf": "the Hugging Face cache", "llama.cpp": "llama.cpp's cache"})
MAX_LICENCE_BYTES = 1 << 16
MAX_ENTRIES = 10_000  # of one folder, and of one store

_QUANT = re.compile(r"(?:^|[-._])((?:ud-)?(?:i?q\d_(?:k(?:_[a-z]{1,2})?|[01]|[a-z]{1,3})|bf16|f16|f32|mxfp4))$", re.I)
# Of several files of one model the first of these is taken: 4 bits first, then more of them, plain numbers last.
PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K", "Q8_0",
             "BF16", "F16", "F32")


@dataclass(frozen=True)
class FoundModel:
    """One model of another tool.

    `repo` is what stands before the last part of its name: mistral (Ollama), OWNER/REPO, or nothing. `variant` is that
    part: a tag (Ollama), a file, or nothing for a folder of safetensors. `path` is what open_checkpoint takes.
    """

    origin: Origin
    repo: str
    variant: str
    path: Path
    size: int = 0
    projector: Path | None = None  # where the vision encoder is not the one mmproj file beside `path`
    licence_file: Path | None = None
    left_out: tuple[str, ...] = ()  # what the tool applies and brise does not
    problem: str = ""  # why it cannot be used

    @property
    def name(self) -> str:
        """The name that finds this model and no other: ollama:mistral:7b, hf:OWNER/REPO/FILE.gguf."""
        between = "" if not self.repo or not self.variant else ":" if self.origin == "ollama" else "/"
        return f"{self.origin}:{self.repo}{between}{self.variant}"

    @property
    def short_name(self) -> str:
        """What the model is called where a name may hold neither a colon nor a slash."""
        text = self.repo.rpartition("/")[2] + f"-{self.variant}" if self.origin == "ollama" else (
            without_part(self.variant).removesuffix(".gguf") or self.repo.rpartition("/")[2])
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or self.origin

    @property
    def rank(self) -> int:
        """The place among other variants of the same model; the lowest is taken."""
        if self.origin == "ollama":
            return 0 if self.variant == "latest" else 1
        quant = quant_of(self.variant)
        return PREFERRED.index(quant) if quant in PREFERRED else len(PREFERRED)

    def exact_names(self) -> Iterator[str]:
        """Names without the origin that mean this variant."""
        if self.origin == "ollama":
            yield from (f"{repo}:{self.variant}" for repo in self.repo_names())
            return
        stem = without_part(self.variant).removesuffix(".gguf")
        ends = [self.variant, stem, without_part(self.variant), quant_of(self.variant)] if self.variant else []
        for end in filter(None, ends):
            yield from (f"{repo}{sign}{end}" for repo in self.repo_names() for sign in ":/")
        yield from filter(None, ends[:3])
        if self.origin == "llama.cpp":  # OWNER_REPO_FILE.gguf: a file name is enough
            yield from (stem.split("_", count)[-1] for count in (1, 2) if stem.count("_") >= count)

    def repo_names(self) -> Iterator[str]:
        """Names without the origin that mean this model in any variant."""
        if not self.repo:
            return
        yield self.repo
        if self.origin != "ollama":
            short = re.sub(r"[-_.]gguf$", "", self.repo, flags=re.I)
            yield from (short, self.repo.rpartition("/")[2], short.rpartition("/")[2])


def pick(models: Iterable[FoundModel], text: str) -> tuple[FoundModel, str] | None:
    """The model that `text` means, upper or lower case, and a note where the rule chose among several."""
    wanted, models = text.casefold(), list(models)
    exact = [model for model in models if wanted in map(str.casefold, model.exact_names())]
    if exact:
        return _only(text, exact), ""
    same = [model for model in models if wanted in map(str.casefold, model.repo_names())]
    if not same:
        return None
    if len({model.repo.casefold() for model in same}) > 1:
        raise _ambiguous(text, same)
    best = min(model.rank for model in same)
    chosen = [model for model in same if model.rank == best]
    model = _only(text, chosen) if same[0].origin == "ollama" else min(chosen, key=lambda one: one.variant)
    if len(same) == 1:
        return model, ""
    others = ", ".join(one.variant for one in same if one is not model)
    return model, f"{TOOLS[model.origin]} has {len(same)} variants of {text}: took {model.variant}, not {others[:200]}"


def _only(text: str, models: list[FoundModel]) -> FoundModel:
    if len({model.path for model in models}) > 1:
        raise _ambiguous(text, models)
    return models[0]


def _ambiguous(text: str, models: Iterable[FoundModel]) -> StoreError:
    names = sorted(model.name for model in models)
    return StoreError(f"{text!r} may mean {len(names)} models of other tools on this machine",
                      hint=f"give one of: {', '.join(names[:8])}")


def quant_of(file: str) -> str:
    """Q4_K_M of NAME-Q4_K_M.gguf; empty if the name does not say."""
    match = _QUANT.search(without_part(file).removesuffix(".gguf"))
    return match[1].upper() if match else ""


def is_inside(path: Path, roots: Iterable[Path]) -> bool:
    """Whether the file behind `path`, links followed, lies in one of the folders."""
    target = os.path.realpath(path)
    return any(target.startswith(os.path.realpath(root) + os.sep) for root in roots)


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name; nothing if it cannot be read. Names that no terminal can show are left out."""
    try:
        with os.scandir(folder) as listing:
            found = [entry for _, entry in zip(range(MAX_ENTRIES), listing, strict=False)]
    except OSError:
        return []
    return sorted((entry for entry in found if entry.name.isprintable()), key=lambda entry: entry.name)


def gguf_models(folder: Path) -> Iterator[tuple[Path, int, list[Path]]]:
    """Each .gguf model of a folder: its first file, the bytes of all its parts, and the mmproj files beside it."""
    files = {entry.name: Path(entry.path) for entry in entries(folder) if entry.name.endswith(".gguf")}
    projectors = [path for name, path in files.items() if is_projector(name)]
    for name, path in files.items():
        part = PART.fullmatch(name)
        if is_projector(name) or (part is not None and int(part[2]) != 1):
            continue
        parts = [path] if part is None else [other for other_name, other in files.items()
                                             if without_part(other_name) == without_part(name)]
        yield path, sum(map(size_of, parts)), projectors


def best_projector(projectors: Sequence[Path]) -> Path | None:
    """Of several mmproj files the one in F16, and else the first by name, as `brise pull` takes them."""
    half = [path for path in projectors if re.search(r"(?<!b)f16", path.name.lower())]
    return next(iter(sorted(half or projectors)), None)


def licence_of(model: FoundModel) -> str:
    """What the model's files say of its licence: the first line of Ollama's layer, or the card's `license`."""
    if model.licence_file is None:
        return ""
    try:
        with model.licence_file.open("rb") as file:
            lines = file.read(MAX_LICENCE_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    if model.origin == "hf":
        stated = [line.removeprefix("license:").strip() for line in lines if line.startswith("license:")]
        return next(iter(stated), "")[:200]
    return next((line.strip() for line in lines if line.strip()), "")[:200]


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
