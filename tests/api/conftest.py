"""A tiny random model, loaded once, and a store of its own for every test of the Python API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import brise
from tests.checkpoint.make_gguf import write_tiny


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model store of the test."""
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a chat template and 512 tokens of context; what it says means nothing."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")


@pytest.fixture(scope="session")
def model(tiny_path: Path) -> Iterator[brise.Model]:
    """The model, for tests that leave it as it is."""
    with brise.load(tiny_path, threads=1) as loaded:
        yield loaded
