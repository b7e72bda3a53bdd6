"""The models that other tools keep on this machine, as one list, and what is opened of each.

A model whose vision encoder lies elsewhere is opened through a folder of links in brise's own home (LINKS): nothing is
copied, and nothing is written into another tool's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from os.path import commonprefix
from pathlib import Path

from brise.checkpoint.model_files import parts_of
from brise.errors import StoreError
from brise.files.atomic import private_folder
from brise.files.digests import Located, disk_errors, text_digest
from brise.hub import hugging_face_cache, ollama_store
from brise.hub.found import (
    MAX_ENTRIES,
    ORIGINS,
    TOOLS,
    FoundModel,
    Origin,
    best_projector,
    entries,
    gguf_models,
    is_inside,
    pick,
)
from brise.settings import ToolFolders

LINKS = "links"


def origin_of(text: str) -> Origin | None:
    """The tool that a name begins with."""
    return next((origin for origin in ORIGINS if text.startswith(f"{origin}:")), None)


@dataclass(frozen=True)
class OtherStores:
    """The stores of other tools. `home` is brise's own."""

    home: Path
    folders: ToolFolders

    def models(self, *origins: Origin) -> list[FoundModel]:
        """What these tools keep, of each tool by name; without an argument what all of them keep."""
        return [model for origin in origins or ORIGINS
                for model in sorted(self._read(origin), key=lambda model: model.name)]

    def find(self, text: str) -> tuple[FoundModel, str] | None:
        """The model that `text` means, and a note if it was chosen among several.

        `text` is a name with the tool in front (ollama:mistral), or without, for the first tool that has such a model.
        """
        own = origin_of(text)
        for origin in ORIGINS if own is None else (own,):
            picked = pick(self.models(origin), text if own is None else text.removeprefix(f"{own}:"))
            if picked is not None:
                return picked
        return None

    def located(self, model: FoundModel, note: str = "") -> Located:
        """What open_checkpoint opens of it; StoreError if it cannot be used."""
        if model.problem:
            raise StoreError(f"{model.name} of {TOOLS[model.origin]} cannot be used: {model.problem}")
        roots = [root for origin in ORIGINS for root in self._roots(origin)]
        parts = parts_of(model.path)
        inside = [] if model.path.is_file() else list(islice(model.path.rglob("*"), MAX_ENTRIES))
        for path in (*parts, *inside, *([] if model.projector is None else [model.projector])):
            if not is_inside(path, roots):
                raise StoreError(f"{path} of {TOOLS[model.origin]} is a link to {os.path.realpath(path)}, outside the "
                                 "folders of the tools that brise knows", hint="give the path of the file itself")
        left_out = f"{TOOLS[model.origin]}'s {', '.join(model.left_out)} not applied" if model.left_out else ""
        path = model.path if model.projector is None else self._linked(model, parts)
        return Located(model.short_name, path, note="; ".join(filter(None, (note, left_out))))

    def _read(self, origin: Origin) -> list[FoundModel]:
        read = {"ollama": ollama_store.models, "lmstudio": _lm_studio, "hf": hugging_face_cache.models,
                "llama.cpp": _llama_cpp}[origin]
        return [model for root in self._roots(origin) for model in read(root)]

    def _roots(self, origin: Origin) -> tuple[Path, ...]:
        return {"ollama": self.folders.ollama, "lmstudio": self.folders.lm_studio, "hf": self.folders.hugging_face,
                "llama.cpp": self.folders.llama_cpp}[origin]

    def _linked(self, model: FoundModel, parts: list[Path]) -> Path:
        """A folder with links to the parts of a .gguf and to its vision encoder."""
        assert model.projector is not None
        names = [part.name if part.suffix == ".gguf" else "model.gguf" for part in parts]
        links = dict(zip(names, map(Path.absolute, parts), strict=True)) | {"mmproj.gguf": model.projector.absolute()}
        folder = self.home / LINKS / text_digest("\n".join(f"{name} {path}" for name, path in links.items()))
        with disk_errors(self.home):
            _make_links(folder, links)
        return folder


def _make_links(folder: Path, links: Mapping[str, Path]) -> None:
    """Another process may make the same ones at the same time: a link that is there is the same."""
    private_folder(folder)
    for name, target in links.items():
        try:
            (folder / name).symlink_to(target)
        except FileExistsError:
            pass


def _lm_studio(root: Path) -> Iterator[FoundModel]:
    """ROOT/PUBLISHER/REPO/*.gguf. Folders of MLX models have no .gguf and are left out."""
    for publisher in entries(root):
        for repo in entries(Path(publisher.path)):
            for path, size, projectors in gguf_models(Path(repo.path)):
                yield FoundModel("lmstudio", f"{publisher.name}/{repo.name}", path.name, path, size,
                                 best_projector(projectors) if len(projectors) > 1 else None)


def _llama_cpp(root: Path) -> Iterator[FoundModel]:
    """ROOT/OWNER_REPO_FILE.gguf. A mmproj file belongs to the models whose OWNER_REPO_ its name begins with."""
    for path, size, projectors in gguf_models(root):
        own = [projector for projector in projectors if _owner_and_repo(projector, path)]
        yield FoundModel("llama.cpp", "", path.name, path, size, best_projector(own))


def _owner_and_repo(projector: Path, model: Path) -> bool:
    """Whether both names begin alike up to the mmproj file's own name, which `mmproj` begins."""
    prefix = projector.name[:projector.name.lower().index("mmproj")]
    return bool(prefix) and commonprefix((prefix, model.name)) == prefix
