"""The folder of packed weights: whole files only, within its limit and the disk's, and no rest of a broken try."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from brise import settings
from brise.errors import UnsupportedError
from brise.files.mapped import SourceFile
from brise.hub.packed import PackedFolder
from brise.models.packing import PackedPart
from brise.models.weights import Array

PART_BYTES = 100_000
FILE_BYTES = 4096 * (3 + 25)  # head, header's room and the part, rounded up, and a page behind


def parts(seed: int = 0) -> list[tuple[PackedPart, Array]]:
    return [(PackedPart("w", "F32", 25, 1000), np.random.default_rng(seed).integers(0, 256, PART_BYTES, np.uint8))]


def total(data: Array) -> int:
    return int(data.sum())


def source(path: Path) -> SourceFile:
    if not path.exists():
        path.touch()
    return SourceFile.of(path)


@pytest.fixture
def folder(tmp_path: Path) -> PackedFolder:
    return PackedFolder(tmp_path / "home" / "packed", most_bytes=2 * FILE_BYTES, least_bytes=0)


def write(folder: PackedFolder, identity: str, sources: tuple[SourceFile, ...] = ()) -> str:
    return folder.write(identity, sources, parts(), total)


def is_there(folder: PackedFolder, identity: str) -> bool:
    found = folder.open(identity)
    if found is not None:
        os.close(found[0])
    return found is not None


def test_what_is_written_is_opened(folder: PackedFolder, tmp_path: Path) -> None:
    assert not is_there(folder, "a")
    assert write(folder, "a", (source(tmp_path / "model"),)) == ""
    found = folder.open("a")
    assert found is not None
    descriptor, header = found
    (span,) = header.spans
    assert os.pread(descriptor, PART_BYTES, span.offset) == parts()[0][1].tobytes()
    assert span.checksum == total(parts()[0][1]) and header.sources == (source(tmp_path / "model"),)
    assert os.fstat(descriptor).st_size >= span.offset + PART_BYTES + 4096
    os.close(descriptor)
    assert folder.path("a").stat().st_mode & 0o777 == 0o400 and folder.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", ["cut", "empty", "header", "length", "magic", "renamed", "mode", "link"])
def test_a_file_that_cannot_be_trusted_is_none(folder: PackedFolder, change: str) -> None:
    write(folder, "a")
    path = folder.path("a")
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    match change:
        case "cut":
            os.truncate(path, 60)
        case "empty":
            os.truncate(path, 0)
        case "header" | "length" | "magic":
            data[{"header": 60, "length": 12, "magic": 0}[change]] ^= 1
            path.write_bytes(data)
        case "renamed":
            path.rename(folder.path("b"))
        case "mode":
            path.chmod(0o620)
        case "link":
            path.rename(folder.folder / "elsewhere")
            path.symlink_to(folder.folder / "elsewhere")
    assert not is_there(folder, "a") and not is_there(folder, "b")


def test_the_least_recently_used_make_room(folder: PackedFolder, tmp_path: Path) -> None:
    sources = (source(tmp_path / "model"),)
    for number, name in enumerate("ab"):
        assert write(folder, name, sources) == ""
        os.utime(folder.path(name), (number, number))
    assert is_there(folder, "a")  # which is a use
    assert write(folder, "c", sources) == ""
    assert [is_there(folder, name) for name in "abc"] == [True, False, True]


def test_files_of_no_use_make_room_first(folder: PackedFolder, tmp_path: Path) -> None:
    write(folder, "a", (source(tmp_path / "model"),))
    os.utime(folder.path("a"), (0, 0))
    write(folder, "b", (source(tmp_path / "gone"),))
    (tmp_path / "gone").unlink()
    assert write(folder, "c", (source(tmp_path / "model"),)) == ""
    assert [is_there(folder, name) for name in "abc"] == [True, False, True]


def test_a_file_over_the_limit_is_not_written(tmp_path: Path) -> None:
    folder = PackedFolder(tmp_path / "packed", most_bytes=FILE_BYTES // 2)
    assert "BRISE_PACKED_CACHE allows" in write(folder, "a")
    assert not list(folder.folder.iterdir())


def test_a_short_disk_is_left_alone(folder: PackedFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=10_000_000_000, free=1_000_000_000 + FILE_BYTES // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "are left alone" in write(folder, "a")
    assert not list(folder.folder.iterdir())


def test_a_folder_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    reason = write(PackedFolder(tmp_path / "file" / "packed"), "a")
    assert "file" in reason


def test_stopping_leaves_nothing(folder: PackedFolder) -> None:
    assert folder.write("a", (), parts(), total, lambda: True) == "it was stopped"
    assert not list(folder.folder.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from brise.hub.packed import PackedFolder
from tests.hub.test_packed import parts, total
left = int(sys.argv[2])

def is_stopped():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

PackedFolder(Path(sys.argv[1])).write("a", (), parts(), total, is_stopped)
"""


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_kill_leaves_the_whole_file_or_none(folder: PackedFolder, after: int) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(folder.folder), str(after)], check=False, timeout=60)
    assert is_there(folder, "a") == (after == 2)
    assert write(folder, "b") == ""
    assert not [path for path in folder.folder.iterdir() if path.name.endswith(".part")]


def test_a_second_writer_leaves_it_to_the_first(folder: PackedFolder) -> None:
    folder.folder.mkdir(parents=True)
    part = folder.folder / f".{folder.path('a').name}.{'0' * 16}.part"
    with part.open("wb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        assert "another brise is writing" in write(folder, "a")
        assert write(folder, "b") == "" and part.exists()


def test_pruning_deletes_what_has_no_model(folder: PackedFolder, tmp_path: Path) -> None:
    for name in "ab":
        write(folder, name, (source(tmp_path / name),))
    (tmp_path / "b").write_bytes(b"other")
    removed, kept = folder.prune()
    assert [file.sources for file in removed] == [(str(tmp_path / "b"),)] and "was changed" in removed[0].problem
    assert [file.sources for file in kept] == [(str(tmp_path / "a"),)]
    assert folder.prune(everything=True)[1] == [] and not list(folder.folder.iterdir())


@pytest.mark.parametrize(("text", "most"), [(None, 20_000_000_000), ("3GiB", 3 << 30), ("no", None), ("off", None)])
def test_the_setting(text: str | None, most: int | None) -> None:
    environment = {} if text is None else {"BRISE_PACKED_CACHE": text}
    folder = PackedFolder.of(settings.read({**environment, "BRISE_HOME": "/home"}))
    assert (None if folder is None else folder.most_bytes) == most


def test_a_setting_that_is_no_size_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="BRISE_PACKED_CACHE is 'much'"):
        PackedFolder.of(settings.read({"BRISE_PACKED_CACHE": "much"}))
