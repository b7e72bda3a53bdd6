"""Models of several files in the store: pulled whole, found as a folder, safe from crashes and shared by content."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from brise.checkpoint.open import open_checkpoint
from brise.errors import CheckpointError, StoreError
from brise.files.digests import StoredFile, file_digest, list_digest
from brise.hub.locate import locate
from brise.hub.pull import Puller, pull
from brise.hub.store import ModelStore, StoredModel
from tests.checkpoint import make_folder as make
from tests.checkpoint.make_gguf import write_tiny

NAME = "ministral3_yarn0_untied"


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    def admit(path: Path) -> None:
        open_checkpoint(path).weights()

    return Puller(ModelStore(tmp_path / "home"), lambda what, done, total: None, admit, lambda: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Hugging Face checkpoint in two files, with what usually lies beside it."""
    folder = make.write_hf(tmp_path / "Tiny-3", make.tiny(NAME), num_shards=2)
    for name in ("tokenizer.json", "SYSTEM_PROMPT.txt", "README.md", "pytorch_model.bin"):
        (folder / name).write_text(name)
    return folder


def names_in(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_a_folder_is_pulled_with_all_that_the_model_needs(puller: Puller, folder: Path) -> None:
    entry = pull(puller, str(folder))
    path = puller.store.path(entry)
    assert entry.name == "Tiny-3" and names_in(path) == {
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json",
        "config.json", "tokenizer.json", "SYSTEM_PROMPT.txt"}
    assert entry.size == sum(file.stat().st_size for file in path.iterdir())
    assert all((path / name).read_bytes() == (folder / name).read_bytes() for name in names_in(path))
    assert not list((puller.store.root / "partial").iterdir())
    located = locate("Tiny-3", puller.store)
    assert located.path == path and located.digest == entry.digest
    open_checkpoint(located.path).weights()


def test_only_one_copy_of_the_weights_is_taken(puller: Puller, folder: Path) -> None:
    make.write_native(folder, make.tiny(NAME), num_shards=2)
    entry = pull(puller, str(folder))
    assert not any("consolidated" in file.name or file.name == "params.json" for file in entry.files)


def test_an_mmproj_file_goes_along_with_its_gguf(puller: Puller, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    file = write_tiny(tmp_path / "m" / "tiny.gguf", "mistral3")
    (tmp_path / "m" / "mmproj-tiny-f16.gguf").write_bytes(file.read_bytes())
    admitted: list[Path] = []
    entry = pull(Puller(puller.store, puller.progress, admitted.append, puller.waiting), str(file))
    assert entry.name == "tiny" and len(admitted) == 2
    assert names_in(puller.store.path(entry)) == {"tiny.gguf", "mmproj-tiny-f16.gguf"}


def test_a_folder_that_does_not_fit_its_config_stays_out(puller: Puller, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(CheckpointError, match="shape of"):
        pull(puller, str(folder))
    assert puller.store.names() == []


def test_two_names_share_files_until_both_are_gone(puller: Puller, folder: Path) -> None:
    first = pull(puller, str(folder), "a")
    (folder / "tokenizer.json").write_text("another")
    second = pull(puller, str(folder), "b")
    store = puller.store
    assert first.digest != second.digest and len(list((store.root / "blobs").iterdir())) == 7
    store.remove("a")
    assert len(list((store.root / "blobs").iterdir())) == 6 and store.path(second).is_dir()
    assert not store.folder(first.digest).exists()
    store.remove("b")
    assert not list((store.root / "blobs").iterdir()) and not list((store.root / "folders").iterdir())


@pytest.mark.parametrize("damage", [
    lambda store, entry: store.blob(entry.files[0].digest).unlink(),
    lambda store, entry: (store.folder(entry.digest) / entry.files[1].name).unlink()], ids=["blob", "link"])
def test_what_is_missing_is_an_error_and_pulling_again_repairs_it(
        puller: Puller, folder: Path, damage: Callable[[ModelStore, StoredModel], None]) -> None:
    entry = pull(puller, str(folder))
    damage(puller.store, entry)
    with pytest.raises(StoreError, match="is missing"):
        puller.store.path(entry)
    assert names_in(puller.store.path(pull(puller, str(folder)))) == {file.name for file in entry.files}


@pytest.mark.parametrize("change", [
    {"files": 3}, {"files": [3]}, {"files": [{"name": "a", "digest": "0" * 64}]}, {"files": {}},
    {"files": [{"name": "../a", "digest": "0" * 64, "size": 1}]}, {"files": [{"name": "a", "digest": "x", "size": 1}]},
    {"files": [{"name": 1, "digest": "0" * 64, "size": 1}]},
    {"files": [{"name": "..", "digest": "0" * 64, "size": 1}]}])
def test_a_damaged_list_of_files_is_an_error(puller: Puller, folder: Path, change: dict[str, object]) -> None:
    pull(puller, str(folder), "m")
    manifest = puller.store.root / "manifests" / "m.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(StoreError):
        puller.store.path(puller.store.get("m"))
    puller.store.remove("m")


CRASHES = """
import hashlib, os, sys
from pathlib import Path
from brise.files.digests import StoredFile, file_digest
from brise.hub.store import ModelStore

root = Path(sys.argv[1])
calls = ("replace", "fsync", "open", "unlink", "chmod", "mkdir", "close", "rmdir", "symlink")

def put(store, data):
    staged = store.partial("key") / "files"
    staged.mkdir(exist_ok=True)
    files = []
    for name in ("a", "b"):
        (staged / name).unlink(missing_ok=True)
        (staged / name).write_bytes(data + name.encode())
        files.append(StoredFile(name, file_digest(staged / name), len(data) + 1))
    store.add_folder("m", staged, files, "test")

def die_at(number):
    left = [number]
    def wrap(call):
        def stop(*args, **named):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            return call(*args, **named)
        return stop
    for name in calls:
        setattr(os, name, wrap(getattr(os, name)))

data = [b"old", b"newer"]
put(ModelStore(root), data[0])
number = 0
while True:
    child = os.fork()
    if child == 0:
        die_at(number)
        put(ModelStore(root), data[1])
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    store = ModelStore(root)
    folder = store.path(store.get("m"))
    content = [(folder / name).read_bytes() for name in ("a", "b")]
    assert content in [[each + b"a", each + b"b"] for each in data], (number, content)
    if status == 0:
        assert content[0] == data[1] + b"a" and len(list((root / "blobs").iterdir())) == 2
        assert len(list((root / "folders").iterdir())) == 1
        break
    assert status == 9, status
    put(store, data[0])
    number += 1
print(number)
"""


def test_a_crash_at_any_write_leaves_the_old_model_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CRASHES, str(tmp_path / "home")],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20  # that many places to die at were tried


def test_the_digest_of_a_list_is_that_of_sha256sums_output(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"y")
    files = [StoredFile(name, file_digest(tmp_path / name), 1) for name in ("b", "a")]
    listing = subprocess.run("sha256sum a b | sort | sha256sum", shell=True, cwd=tmp_path, capture_output=True,
                             text=True, check=True, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"}).stdout
    assert list_digest(files) == listing.split()[0]
