"""Finds and downloads models of the Hugging Face hub (extra `hf`): a .gguf with its mmproj file, or safetensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from brise.checkpoint.gguf.file import PART
from brise.checkpoint.model_files import (
    HF_CONFIG,
    HF_STEM,
    NATIVE_CONFIG,
    NATIVE_STEM,
    is_companion,
    is_projector,
    without_part,
)
from brise.checkpoint.pooling import POOLING_CONFIG
from brise.checkpoint.safetensors.shards import NUMBERED
from brise.errors import MissingExtraError, NetworkError, StoreError, UnsupportedError

try:
    import huggingface_hub
except ImportError as missing:
    raise MissingExtraError("huggingface_hub", "hf", "pulling from the Hugging Face hub") from missing


@dataclass(frozen=True)
class HubFile:
    """One file. `digest` is the SHA-256 that the hub states of large files, `git_id` what it states of small ones."""

    name: str
    size: int
    digest: str | None
    git_id: str | None


@dataclass(frozen=True)
class HubModel:
    """The files of a model at one commit; files with weights come first."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    licence: str = ""  # as the repository's card states it


def find(repo: str, file: str | None, endpoint: str | None = None, revision: str | None = None) -> HubModel:
    """The .gguf called `file` or the only one, or else the safetensors checkpoint of the repository."""
    try:
        info = huggingface_hub.HfApi(endpoint=endpoint).model_info(repo, revision=revision, files_metadata=True)
    # Its transport, and with it the errors of a missing network, differ by version: requests, httpx, httpx2.
    except Exception as error:
        _refuse(repo, error)
    listed = {one.rfilename: one for one in info.siblings or ()}
    models = sorted(name for name in listed if name.endswith(".gguf") and not is_projector(name))
    if file is not None or models:
        choice = _choose(repo, file, models)
        names = [*_parts(repo, choice, listed), *_projector(choice, listed)]
    else:
        names = _safetensors(repo, listed)
    return HubModel(repo, info.sha or revision or "main", tuple(_file(listed[name]) for name in names), _licence(info))


def download(model: HubModel, file: HubFile, folder: Path, endpoint: str | None = None) -> Path:
    """Downloads into `folder`; a part that an earlier try left there is completed by the library."""
    try:
        return Path(huggingface_hub.hf_hub_download(
            model.repo, file.name, revision=model.commit, local_dir=folder, endpoint=endpoint))
    except Exception as error:  # as above
        _refuse(model.repo, error)


def _file(sibling: huggingface_hub.hf_api.RepoSibling) -> HubFile:
    digest = sibling.lfs.sha256 if sibling.lfs is not None else None
    return HubFile(sibling.rfilename, sibling.size or 0, digest, sibling.blob_id)


def _licence(info: huggingface_hub.hf_api.ModelInfo) -> str:
    """The licence's name on the card, and its address if it has one: at most 200 characters."""
    card = info.card_data
    texts = [] if card is None else [card.get("license_name") or card.get("license"), card.get("license_link")]
    return ", ".join(text for text in texts if isinstance(text, str))[:200]


def _choose(repo: str, file: str | None, names: list[str]) -> str:
    listed = ", ".join(names[:12])
    if file is not None and file not in names:
        raise StoreError(f"the repository {repo!r} has no file {file!r}",
                         hint=f"it has: {listed}" if names else "it has no .gguf file")
    if file is None and len({without_part(name) for name in names}) > 1:
        raise StoreError(f"the repository {repo!r} has {len(names)} .gguf files, say which one",
                         hint=f"brise pull hf:{repo}/FILE with one of: {listed}")
    choice = names[0] if file is None else file
    if ".." in Path(choice).parts or Path(choice).is_absolute():
        raise StoreError(f"the repository {repo!r} names a file outside itself: {choice!r}")
    return choice


def _parts(repo: str, choice: str, names: Collection[str]) -> list[str]:
    """All parts of a model, from any one of them."""
    part = PART.fullmatch(choice)
    if part is None:
        return [choice]
    parts = [f"{part[1]}-{number:05}-of-{part[3]}.gguf" for number in range(1, int(part[3]) + 1)]
    missing = [name for name in parts if name not in names]
    if missing:
        raise StoreError(f"the repository {repo!r} has no {missing[0]!r}, one of the {len(parts)} parts of this model")
    return parts


def _projector(choice: str, names: Iterable[str]) -> list[str]:
    """The mmproj file beside a .gguf; of several the one in F16, and else the first by name."""
    beside = sorted(name for name in names if is_projector(name) and Path(name).parent == Path(choice).parent)
    if "/" in choice or not beside:  # files of one model lie in one folder of ours
        return []
    half = [name for name in beside if re.search(r"(?<!b)f16", name.lower())]
    return (half or beside)[:1]


def _safetensors(repo: str, names: Collection[str]) -> list[str]:
    """The files of one layout, Hugging Face's first, as in a folder; never both copies of the weights."""
    for config, stem in ((HF_CONFIG, HF_STEM), (NATIVE_CONFIG, NATIVE_STEM)):
        weights = sorted(name for name in names
                         if name == f"{stem}.safetensors" or ((match := NUMBERED.fullmatch(name)) and match[1] == stem))
        if weights and config in names:
            beside = sorted(name for name in names if is_companion(name, stem))
            pooling = [name for name in (POOLING_CONFIG,) if name in names and stem == HF_STEM]
            return [*weights, config, *beside, *pooling]
    raise UnsupportedError(f"the repository {repo!r} has no .gguf file and no safetensors checkpoint that brise knows",
                           hint="look for a repository of the same model whose name ends in -GGUF")


def _refuse(repo: str, error: Exception) -> NoReturn:
    text = str(error).strip() or repr(error)
    raise NetworkError(f"the Hugging Face hub does not give {repo!r}: {text.splitlines()[0]}",
                       hint="check the network and the name; a private or gated repository needs "
                            "`hf auth login` first") from error
