"""GGUF files from the Hugging Face hub (extra `hf`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from brise.errors import MissingExtraError, NetworkError, StoreError, UnsupportedError

try:
    import huggingface_hub
except ImportError as missing:
    raise MissingExtraError("huggingface_hub", "hf", "pulling from the Hugging Face hub") from missing

SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf")


@dataclass(frozen=True)
class HubFile:
    """One file at one commit; `digest` is the SHA-256 that the hub states, if it does."""

    repo: str
    file: str
    commit: str
    digest: str | None


def find(repo: str, file: str | None, endpoint: str | None = None) -> HubFile:
    """The .gguf that is meant: `file`, or the only one in the repository."""
    try:
        info = huggingface_hub.HfApi(endpoint=endpoint).model_info(repo, files_metadata=True)
    # Its transport, and so the errors of a missing network, differ by version: requests, httpx, httpx2.
    except Exception as error:
        _refuse(repo, error)
    found = {one.rfilename: one for one in info.siblings or () if one.rfilename.endswith(".gguf")}
    choice = _choose(repo, file, sorted(found))
    lfs = found[choice].lfs
    return HubFile(repo, choice, info.sha or "main", lfs.sha256 if lfs is not None else None)


def download(found: HubFile, folder: Path, endpoint: str | None = None) -> Path:
    """Downloads into `folder`; a part that an earlier try left there is completed by the library."""
    try:
        return Path(huggingface_hub.hf_hub_download(
            found.repo, found.file, revision=found.commit, local_dir=folder, endpoint=endpoint))
    except Exception as error:  # as above
        _refuse(found.repo, error)


def _choose(repo: str, file: str | None, names: list[str]) -> str:
    listed = ", ".join(names[:12])
    if file is not None and file not in names:
        raise StoreError(f"the repository {repo!r} has no file {file!r}",
                         hint=f"it has: {listed}" if names else "it has no .gguf file")
    if file is None and not names:
        raise UnsupportedError(f"the repository {repo!r} has no .gguf file, and no other is read",
                               hint="look for a repository of the same model whose name ends in -GGUF")
    if file is None and len(names) > 1:
        raise StoreError(f"the repository {repo!r} has {len(names)} .gguf files, say which one",
                         hint=f"brise pull hf:{repo}/FILE with one of: {listed}")
    choice = names[0] if file is None else file
    if SHARD.search(choice):
        raise UnsupportedError(f"{choice!r} is one part of a split model; only models in one file are read")
    if ".." in Path(choice).parts or Path(choice).is_absolute():
        raise StoreError(f"the repository {repo!r} names a file outside itself: {choice!r}")
    return choice


def _refuse(repo: str, error: Exception) -> NoReturn:
    text = str(error).strip() or repr(error)
    raise NetworkError(f"the Hugging Face hub does not give {repo!r}: {text.splitlines()[0]}",
                       hint="check the network and the name; a private or gated repository needs "
                            "`hf auth login` first") from error
