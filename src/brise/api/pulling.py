"""`brise.pull`, `brise.search_models` and `brise.local_models`: models by name, and where they lie."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from brise import settings
from brise.api.words import python_words
from brise.hub.listed import ListedModel, search
from brise.hub.other_stores import OtherStores
from brise.hub.pull import Puller, admit
from brise.hub.pull import pull as pull_model
from brise.hub.store import ModelStore, StoredModel
from brise.watch import SILENT, Advance, Watcher


@dataclass(frozen=True)
class InstalledModel:
    """One model on this machine, in brise's store or another tool's.

    Attributes:
        name: What `brise.load` takes.
        origin: "brise", "ollama", "lmstudio", "hf" (the cache of the Hugging Face library) or "llama.cpp".
        size: Bytes of its weights.
        path: Its file, or the folder of its files; None where it lies in brise's store.
        problem: Why it cannot be used; empty if nothing is known against it.
    """

    name: str
    origin: str
    size: int
    path: Path | None = None
    problem: str = ""


def pull(model: str | Path, *, name: str | None = None, offline: bool = False,
         watcher: Watcher = SILENT) -> StoredModel:
    """Gets a model into the local store, as `brise pull` does; one that is there already is checked and kept.

    Args:
        model: A name that `brise.search_models` lists, the path of a .gguf file or of a folder, or hf:OWNER/REPO.
        name: What the store calls it. Default: made from `model`.
        offline: Open no socket.
        watcher: Hears the licence before a download begins, and how far the work has come.

    Raises:
        StoreError: There is no such model, or the disk is full.
        NetworkError: The hub or the index does not give it.
        CheckpointError: What arrived is damaged, or not what was asked for.
        UnsupportedError: This version does not run it.
        MissingExtraError: The hub needs `pip install 'brise[hf]'`.
    """
    settings_ = settings.read()
    with python_words(), ExitStack() as tasks:
        return pull_model(Puller(
            store=ModelStore(settings_.home), progress=_Progress(watcher, tasks), admit=admit,
            waiting=lambda: watcher.note("another process is pulling this model; waiting for it"),
            index_url=settings_.index_url, offline=offline, say=watcher.note), str(model), name)


class _Progress:
    """Tells a watcher of bytes done, from counts that begin anew for each stage of a pull."""

    def __init__(self, watcher: Watcher, tasks: ExitStack) -> None:
        self._watcher, self._tasks = watcher, tasks
        self._stages: dict[str, tuple[Advance, int]] = {}

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if what not in self._stages:
            self._stages[what] = self._tasks.enter_context(self._watcher.progress(what, total or 0, "bytes")), 0
        advance, before = self._stages[what]
        if done > before:
            advance(done - before)
        self._stages[what] = advance, done


def search_models(*words: str) -> list[ListedModel]:
    """The models that `brise.pull` knows by name in which every word occurs; without words all of them."""
    return search(words)


def local_models() -> list[InstalledModel]:
    """Every model on this machine: brise's store first, then those of Ollama, LM Studio, the Hugging Face library and
    llama.cpp. Their files are not opened."""
    settings_ = settings.read()
    store = ModelStore(settings_.home)
    own = [InstalledModel(entry.name, "brise", entry.size) for entry in map(store.get, store.names())]
    return own + [InstalledModel(model.name, model.origin, model.size, model.path, model.problem)
                  for model in OtherStores(settings_.home, settings_.tools).models()]
