"""`brise.pull`, `brise.search_models` and `brise.local_models`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import brise
from brise.watch import Advance
from tests.checkpoint.make_gguf import write_tiny
from tests.hub import make_stores


class Watching:
    """A watcher that keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: dict[str, int] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def progress(self, task: str, total: int, unit: str) -> Iterator[Advance]:
        assert unit == "bytes"
        self.done[task] = 0

        def advance(count: int) -> None:
            self.done[task] += count

        yield advance


def test_a_file_is_pulled_and_listed_beside_other_tools_models(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    path, watching = write_tiny(tmp_path / "tiny.gguf", "llama"), Watching()
    entry = brise.pull(path, watcher=watching)
    assert isinstance(entry, brise.StoredModel) and entry.name == "tiny" and entry.size == path.stat().st_size
    assert watching.done and set(watching.done.values()) == {entry.size}
    make_stores.ollama(tmp_path / "ollama", "other", "latest", {"model": path.read_bytes()})
    monkeypatch.setenv("BRISE_OTHER_STORES", "yes")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "nothing"))
    assert [(model.name, model.origin) for model in brise.local_models()] == [
        ("tiny", "brise"), ("ollama:other:latest", "ollama")]
    with brise.load("ollama:other") as model:
        assert model.complete("a", max_tokens=1)


def test_names_that_can_be_pulled_are_searched() -> None:
    assert "qwen3:0.6b" in [model.title for model in brise.search_models("qwen3")]
    assert all(model.licence.limits for model in brise.search_models("llama3.2"))
    with pytest.raises(brise.StoreError, match="names that look like it: qwen3:0.6b"):
        brise.pull("qwen3:0.5b")
