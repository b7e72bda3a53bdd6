"""Finds the files of a model in a folder: Hugging Face's, Mistral's own, or a .gguf with its mmproj file."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NoReturn

from brise.checkpoint.gguf.file import PART
from brise.checkpoint.pooling import FLAT_POOLING_CONFIG, POOLING_CONFIG
from brise.checkpoint.safetensors.shards import shard_files
from brise.errors import CheckpointError, StoreError, UnsupportedError

HF_CONFIG, HF_STEM = "config.json", "model"
NATIVE_CONFIG, NATIVE_STEM = "params.json", "consolidated"
# What a model needs besides its weights, where its folder has it: tokens, chat, images, its licence.
COMPANIONS = (
    "tekken.json", "tokenizer.json", "tokenizer.model*", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "generation_config.json",
    "chat_template.jinja", "chat_template.json", "SYSTEM_PROMPT.txt", "preprocessor_config.json",
    "processor_config.json", "modules.json", "config_sentence_transformers.json", "LICENSE*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelFiles:
    """A model's files with weights in `folder`; a .gguf, or its parts in order, come before its mmproj file."""

    kind: Literal["gguf", "hf", "mistral"]
    folder: Path
    files: tuple[Path, ...]
    config: str = ""  # the file that describes a safetensors model
    stem: str = ""
    projector: Path | None = None  # the last of `files`


def find_layout(path: Path) -> ModelFiles:
    """What `path`, a .gguf or a folder, holds.

    Of a folder with several kinds, a .gguf comes first, then Hugging Face's files, then Mistral's own.
    """
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError as error:  # a name too long, a folder without access
        raise StoreError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if is_file:
        if path.suffix == ".safetensors":
            raise StoreError(f"{str(path)!r} is one file of a safetensors model",
                             hint=f"give its folder: {path.absolute().parent}")
        return _gguf_files(path.parent, parts_of(path), _projector(path))
    if not is_folder:
        raise StoreError(f"there is no model file {str(path)!r}",
                         hint="give a name that `brise models` lists, or the path of a .gguf file or of a folder")
    return _gguf(path) or _safetensors(path) or _nothing(path)


def all_files(layout: ModelFiles) -> tuple[Path, ...]:
    """The files with weights and everything beside them that the model needs."""
    names = {file.name for file in layout.files} | {layout.config}
    beside = sorted(file for file in layout.folder.iterdir()
                    if file.is_file() and file.name not in names and is_companion(file.name, layout.stem))
    config = (layout.folder / layout.config,) if layout.config else ()
    pooling = [file for file in (layout.folder / POOLING_CONFIG,) if layout.kind == "hf" and file.is_file()]
    return (*layout.files, *config, *beside, *pooling)


def flat_name(name: str) -> str:
    """What a file of a model is called where all lie in one folder, as in the store."""
    return FLAT_POOLING_CONFIG if name.endswith(POOLING_CONFIG) else name.rpartition("/")[2]


def is_companion(name: str, stem: str) -> bool:
    """Whether a file of this name belongs to a model whose weights are called STEM*."""
    if name.endswith(".safetensors.index.json"):
        return bool(stem) and name == f"{stem}.safetensors.index.json"
    return any(fnmatchcase(name, pattern) for pattern in COMPANIONS)


def is_projector(name: str) -> bool:
    """Whether a .gguf of this name holds a vision encoder, as llama.cpp's converters call it."""
    return name.endswith(".gguf") and "mmproj" in name.lower()


def parts_of(path: Path) -> list[Path]:
    """The parts of a model that are there beside one of them, in order; the file itself if it is whole."""
    name = PART.fullmatch(path.name)
    if name is None:
        return [path]
    others = (path.with_name(f"{name[1]}-{number:05}-of-{name[3]}.gguf") for number in range(1, int(name[3]) + 1))
    return [other for other in others if other.is_file()] or [path]


def without_part(name: str) -> str:
    """The name of a model in several files, from that of a part."""
    part = PART.fullmatch(name)
    return name if part is None else f"{part[1]}.gguf"


def _gguf_files(folder: Path, parts: list[Path], projectors: list[Path]) -> ModelFiles:
    return ModelFiles("gguf", folder, (*parts, *projectors), projector=projectors[0] if projectors else None)


def _gguf(folder: Path) -> ModelFiles | None:
    files = sorted(file for file in folder.glob("*.gguf") if not is_projector(file.name))
    models = {without_part(file.name) + str(PART.fullmatch(file.name) is None): file for file in reversed(files)}
    if len(models) > 1:
        raise StoreError(f"the folder {str(folder)!r} holds {len(models)} .gguf models, 1 is allowed"
                         if len(models) < len(files) else
                         f"the folder {str(folder)!r} holds {len(models)} .gguf files, 1 is allowed",
                         hint="name one of them: " + ", ".join(sorted(file.name for file in models.values())[:8]))
    if not models:
        return None
    projectors = _projectors(folder)
    if len(projectors) > 1:
        raise StoreError(f"the folder {str(folder)!r} holds {len(projectors)} mmproj files, 1 is allowed",
                         hint="move all but one of them away: " + ", ".join(file.name for file in projectors[:8]))
    return _gguf_files(folder, parts_of(files[0]), projectors)


def _safetensors(folder: Path) -> ModelFiles | None:
    for config, stem in ((HF_CONFIG, HF_STEM), (NATIVE_CONFIG, NATIVE_STEM)):
        if (folder / config).is_file():
            files = shard_files(folder, stem)
            if files:
                return ModelFiles("hf" if stem == HF_STEM else "mistral", folder, files, config, stem)
    return None


def _nothing(folder: Path) -> NoReturn:
    """Says what is missing, or what the folder has instead."""
    for config, stem in ((HF_CONFIG, HF_STEM), (NATIVE_CONFIG, NATIVE_STEM)):
        if shard_files(folder, stem):
            raise CheckpointError(f"{folder} has {stem}*.safetensors, but no {config}, which says what they are",
                                  field=config, limit="a file", hint="copy it from the model's repository")
    if any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"the folder {str(folder)!r} holds safetensors under names that brise does not know", field="files",
            limit="model*.safetensors with config.json, or consolidated*.safetensors with params.json")
    if any(file for pattern in PICKLES for file in folder.glob(pattern)):
        raise UnsupportedError(f"the folder {str(folder)!r} holds pickled weights, which can run any code when read; "
                               "brise does not open them", hint="get the safetensors files of the same model")
    raise StoreError(f"the folder {str(folder)!r} holds no model: no .gguf and no .safetensors file")


def _projector(path: Path) -> list[Path]:
    """The one mmproj file beside a .gguf. With several, none is taken."""
    projectors = [] if is_projector(path.name) else _projectors(path.parent)
    return projectors if len(projectors) == 1 else []


def _projectors(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.gguf") if is_projector(file.name))
