"""The model store: what it holds survives crashes, full disks and other processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from brise.errors import StoreError
from brise.files.digests import file_digest
from brise.hub.locate import locate
from brise.hub.store import ModelStore, is_name


def put(store: ModelStore, name: str, data: bytes, source: str = "test") -> None:
    staged = store.partial("key") / "file"
    staged.unlink(missing_ok=True)
    staged.write_bytes(data)
    store.add(name, staged, hashlib.sha256(data).hexdigest(), source)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "home")


def test_an_added_model_is_found_by_its_digest(store: ModelStore) -> None:
    put(store, "small", b"weights")
    entry = store.get("small")
    assert entry.digest == hashlib.sha256(b"weights").hexdigest() and entry.size == 7
    assert store.path(entry).read_bytes() == b"weights"
    assert store.path(entry).name == f"sha256-{entry.digest}"


def test_blobs_are_read_only(store: ModelStore) -> None:
    put(store, "small", b"weights")
    assert store.path(store.get("small")).stat().st_mode & 0o777 == 0o444


def test_an_empty_store_has_no_names_and_makes_no_folder(store: ModelStore) -> None:
    assert store.names() == []
    with pytest.raises(StoreError, match="there is no model 'x'"):
        store.get("x")
    assert not store.root.exists()


def test_two_names_share_one_file_until_both_are_gone(store: ModelStore) -> None:
    put(store, "a", b"same")
    put(store, "b", b"same")
    blob = store.path(store.get("a"))
    store.remove("a")
    assert blob.exists() and store.names() == ["b"]
    store.remove("b")
    assert not blob.exists()


def test_a_new_file_under_an_old_name_replaces_it_and_frees_the_old_one(store: ModelStore) -> None:
    put(store, "m", b"old")
    old = store.path(store.get("m"))
    put(store, "m", b"new!")
    assert store.path(store.get("m")).read_bytes() == b"new!" and not old.exists()


def test_removing_an_unknown_name_says_what_there_is(store: ModelStore) -> None:
    put(store, "known", b"x")
    with pytest.raises(StoreError, match="the store has: known"):
        store.remove("unknown")


@pytest.mark.parametrize("change", [b"", b"longer than before"])
def test_a_file_of_the_wrong_length_is_an_error_and_pulling_again_repairs_it(
        store: ModelStore, change: bytes) -> None:
    put(store, "m", b"weights")
    blob = store.path(store.get("m"))
    blob.chmod(0o644)
    blob.write_bytes(change)
    with pytest.raises(StoreError, match="instead of 7"):
        store.path(store.get("m"))
    put(store, "m", b"weights")
    assert store.path(store.get("m")).read_bytes() == b"weights"


@pytest.mark.parametrize("text", [
    b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"digest": 1, "size": 1, "source": "", "added": ""}',
    b'{"digest": "../../etc/passwd", "size": 1, "source": "", "added": ""}', b"[" * 70000])
def test_a_damaged_manifest_is_an_error_that_can_be_removed(store: ModelStore, text: bytes) -> None:
    put(store, "m", b"weights")
    (store.root / "manifests" / "m.json").write_bytes(text)
    with pytest.raises(StoreError, match="manifest"):
        store.get("m")
    store.remove("m")
    assert store.names() == []


def test_with_a_damaged_manifest_no_file_is_swept_away(store: ModelStore) -> None:
    put(store, "a", b"one")
    put(store, "b", b"two")
    blob = store.path(store.get("a"))
    (store.root / "manifests" / "a.json").write_bytes(b"?")
    store.remove("b")
    assert blob.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "x.gguf", "hf:a", "a b", "x" * 101, "é"])
def test_names_that_could_be_paths_are_refused(store: ModelStore, name: str) -> None:
    assert not is_name(name)
    with pytest.raises(StoreError, match="cannot name a model"):
        put(store, name, b"x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_is_an_error_and_loses_nothing(
        store: ModelStore, monkeypatch: pytest.MonkeyPatch, number: int, call: str) -> None:
    put(store, "m", b"old")

    def full(*args: object) -> None:
        raise OSError(number, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(StoreError, match="no space left"):
            put(store, "m", b"new!")
    assert store.path(store.get("m")).read_bytes() == b"old"


CRASHES = """
import hashlib, os, sys
from pathlib import Path
from brise.hub.store import ModelStore

root, calls = Path(sys.argv[1]), ("replace", "fsync", "open", "unlink", "chmod", "mkdir", "close", "rmdir")

def put(store, data):
    staged = store.partial("key") / "file"
    staged.unlink(missing_ok=True)
    staged.write_bytes(data)
    store.add("m", staged, hashlib.sha256(data).hexdigest(), "test")

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
    entry = store.get("m")
    content = store.path(entry).read_bytes()
    assert content in data and hashlib.sha256(content).hexdigest() == entry.digest, (number, content)
    if status == 0:
        assert content == data[1] and len(list((root / "blobs").iterdir())) == 1
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
    assert int(done.stdout) > 10  # that many places to die at were tried


def test_many_writers_and_removers_leave_a_whole_store(store: ModelStore) -> None:
    def work(number: int) -> None:
        for turn in range(5):
            data = f"{number % 3} {turn}".encode()
            staged = store.partial(f"key-{number}") / "file"
            staged.unlink(missing_ok=True)
            staged.write_bytes(data)
            store.add(f"m{number % 3}", staged, hashlib.sha256(data).hexdigest(), "test")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("m0", "m1", "m2"):
        entry = store.get(name)
        assert file_digest(store.path(entry)) == entry.digest
    assert len(list((store.root / "blobs").iterdir())) == 3


def test_a_lock_that_another_process_holds_is_waited_for(store: ModelStore) -> None:
    store.partial("key")
    code = ("import sys\nfrom pathlib import Path\nfrom brise.hub.store import ModelStore\n"
            "with ModelStore(Path(sys.argv[1])).lock('k'):\n print('held', flush=True)\n sys.stdin.read()\n")
    with subprocess.Popen([sys.executable, "-c", code, str(store.root)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "held\n"
        waited: list[bool] = []

        def let_go() -> None:
            waited.append(True)
            assert other.stdin is not None
            other.stdin.close()

        with store.lock("k", let_go):
            assert waited == [True]


def test_locate_takes_a_name_a_file_and_a_folder(store: ModelStore, tmp_path: Path) -> None:
    put(store, "m", b"weights")
    file = tmp_path / "folder" / "tiny.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    assert locate("m", store).name == "m"
    assert (locate(str(file), store).name, locate(str(file), store).path) == ("tiny", file)
    assert (locate(str(file.parent), store).name, locate(str(file.parent), store).path) == ("folder", file)
    (file.parent / "mmproj-tiny.gguf").write_bytes(b"GGUF")
    assert (locate(str(file), store).path, locate(str(file.parent), store).path) == (file, file.parent)


def test_a_bare_word_is_a_name_before_it_is_a_folder(
        store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, "m", b"weights")
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("m", store).path == store.path(store.get("m"))
    with pytest.raises(StoreError, match="holds no model"):
        locate("./m", store)


def test_locate_names_what_is_missing(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="'absent' on this machine\nhint: brise models search lists"):
        locate("absent", store)
    with pytest.raises(StoreError, match="hint: brise pull qwen3:0.6b$"):
        locate("qwen3:0.6b", store)
    with pytest.raises(StoreError, match="names that look like it: qwen3:0.6b, qwen3:1.7b"):
        locate("qwen3:0.5b", store)
    with pytest.raises(StoreError, match="there is no model file 'no/such.gguf'"):
        locate("no/such.gguf", store)


@pytest.mark.parametrize(("model", "message"), [
    ("", "an empty MODEL"), ("~nobody-of-that-name/x.gguf", "no model file"), ("x" * 5000, "cannot read 'xxx"),
    ("hf:owner/repo", "brise pull hf:owner/repo")])
def test_locate_refuses_what_can_be_no_file(store: ModelStore, model: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        locate(model, store)


@pytest.mark.parametrize("below", ["", "home"])
def test_a_root_that_can_be_no_folder_is_an_error_of_the_store(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot use (.|\n)*hint: set BRISE_HOME"):
        put(ModelStore(tmp_path / "file" / below), "small", b"weights")
    with pytest.raises(StoreError, match="cannot use "):
        ModelStore(tmp_path / ("x" * 300)).names()


def test_a_folder_with_several_models_is_refused(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "a.gguf").write_bytes(b"")
    assert locate(str(tmp_path), store).path.name == "a.gguf"
    (tmp_path / "mmproj-a.gguf").write_bytes(b"")
    assert locate(str(tmp_path), store).path == tmp_path
    (tmp_path / "b.gguf").write_bytes(b"")
    with pytest.raises(StoreError, match=r"2 \.gguf files(.|\n)*a\.gguf, b\.gguf"):
        locate(str(tmp_path), store)


def test_the_manifest_is_plain_json(store: ModelStore) -> None:
    put(store, "m", b"weights", source="hf:owner/repo")
    fields = json.loads((store.root / "manifests" / "m.json").read_text())
    assert fields["name"] == "m" and fields["source"] == "hf:owner/repo" and fields["size"] == 7
