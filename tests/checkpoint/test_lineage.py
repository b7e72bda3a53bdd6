"""Lineage: written and read back, every wrong field named, and an adapter kept from another base."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brise.checkpoint.adapters.lineage import FILE, base_digest, check_base, lineage_text, read_lineage, versions
from brise.cli.main import main
from brise.errors import CheckpointError, UnsupportedError
from brise.files.digests import Located
from brise.hub.locate import locate
from brise.hub.store import ModelStore
from tests.checkpoint import make_folder
from tests.checkpoint.make_adapter import LINEAGE
from tests.checkpoint.make_gguf import write_tiny


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(lineage_text(LINEAGE))
    assert read_lineage(tmp_path) == LINEAGE


def test_an_adapter_of_another_program_has_none(tmp_path: Path) -> None:
    assert read_lineage(tmp_path) is None


@pytest.mark.parametrize(("path", "value", "message"), [
    ("format", 2, "format is 2, allowed is 1"), ("base.digest", "xyz", "base.digest is 'xyz'"),
    ("base.name", None, "base.name is missing"), ("data", [], "data is"), ("seed", -1, "seed is -1"),
    ("seed", 1.5, "seed is 1.5"), ("settings.rank", [1], "settings.rank is"), ("settings", None, "settings is None"),
    ("metrics.loss", "low", "metrics.loss is 'low'"), ("metrics.loss", 10**400, "metrics.loss is 1000"),
    ("versions.torch", 2, "versions.torch is 2"), ("rights.openai", True, "rights.openai is True"),
    ("created", "yesterday", "created is 'yesterday'"), ("created", "2026-11-24T00:00:00+01:00", "created is '2026"),
    ("created", "2026-11-24T00:00:00", "created is '2026"), ("more", 1, "more is 1, which brise does not")])
def test_a_wrong_field_is_named(tmp_path: Path, path: str, value: object, message: str) -> None:
    document: dict[str, Any] = json.loads(lineage_text(LINEAGE))
    *parents, name = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    place[name] = value
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises((CheckpointError, UnsupportedError)) as caught:
        read_lineage(tmp_path)
    assert str(caught.value).startswith(f"{FILE}: ") and message in str(caught.value)


@pytest.mark.parametrize(("field", "value"), [("base_digest", "short"), ("metrics", {"loss": float("nan")}),
                                              ("seed", -3), ("rights", {"a": 1}), ("created", "now")])
def test_a_wrong_lineage_cannot_be_made(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError):
        replace(LINEAGE, **{field: value})


def test_the_digest_of_a_file_is_its_sha256_and_that_of_the_store(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "base.gguf", "llama")
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert base_digest(Located("base", path)) == expected
    assert base_digest(Located("base", path, "f" * 64)) == "f" * 64


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_store_knows_a_model_by_the_digest_of_its_path(tmp_path: Path, kind: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    if kind == "file":
        path = write_tiny(tmp_path / "mine.gguf", "llama")
    else:
        path = tmp_path / "mine"
        make_folder.write_hf(path, make_folder.tiny("llama_tied"))
    assert main(["pull", str(path), "--name", "mine"]) == 0
    store = ModelStore(tmp_path / "home")
    assert base_digest(locate(str(path), store)) == locate("mine", store).digest == store.get("mine").digest


def test_versions_has_what_is_installed() -> None:
    found = versions("torch", "no-such-package")
    assert {"python", "numpy", "torch"} <= found.keys() and "no-such-package" not in found


def test_another_base_is_refused_unless_asked_for(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "base.gguf", "llama")
    located = Located("base", path)
    own = replace(LINEAGE, base_digest=base_digest(located))
    check_base(own, located)
    check_base(None, located)
    check_base(LINEAGE, located, any_base=True)
    with pytest.raises(UnsupportedError, match="was trained on smollm2.*the model is base.*") as caught:
        check_base(LINEAGE, located)
    assert caught.value.hint is not None and "--any-base" in caught.value.hint
