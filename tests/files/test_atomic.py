"""Files appear whole or not at all, are made anew under names that nobody can guess, and are as private as asked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from brise.errors import OutputError
from brise.files import atomic
from brise.files.atomic import private_folder, staged_file, staged_folder


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_file_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    with staged_file(tmp_path / "a", 1, mode=0o600) as file:
        assert [mode_of(part) for part in tmp_path.iterdir()] == [0o600]  # while it is written, too
        file.write(b"x")
    private_folder(tmp_path / "b" / "c")
    assert (mode_of(tmp_path / "a"), mode_of(tmp_path / "b"), mode_of(tmp_path / "b" / "c")) == (0o600, 0o700, 0o700)


def test_other_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    with staged_file(tmp_path / "a", 1):
        pass
    assert mode_of(tmp_path / "a") == 0o666 & ~umask


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_link_where_the_unfinished_file_may_be_leads_nowhere(tmp_path: Path, is_folder: bool) -> None:
    (tmp_path / "victim").write_text("keep")
    (tmp_path / "victims").mkdir()
    (tmp_path / "victims" / "one").write_text("keep")
    for name in (".a.part", ".a.0123456789abcdef.part"):
        (tmp_path / name).symlink_to("victims" if is_folder else "victim")
    if is_folder:
        with staged_folder(tmp_path / "a", 1) as part:
            (part / "x").write_text("new")
    else:
        with staged_file(tmp_path / "a", 1) as file:
            file.write(b"new")
    assert (tmp_path / "victim").read_text() == (tmp_path / "victims" / "one").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "victim", "victims"]


def test_a_file_that_lies_there_at_the_last_moment_is_not_written(tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: "guessed")
    (tmp_path / "victim").write_text("keep")
    (tmp_path / ".a.guessed.part").symlink_to("victim")
    with pytest.raises(OutputError, match="cannot write"), staged_file(tmp_path / "a", 1):
        pass
    assert (tmp_path / "victim").read_text() == "keep"


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_a_killed_try_left_is_removed_and_what_others_write_is_not(tmp_path: Path, is_folder: bool) -> None:
    names = ".a.part", ".a.0123456789abcdef.part", ".b.0123456789abcdef.part", ".a.b.part"
    for name in names:
        if is_folder:
            (tmp_path / name).mkdir()
        (tmp_path / name / "x" if is_folder else tmp_path / name).write_text("rest")
    staged = staged_folder if is_folder else staged_file
    with staged(tmp_path / "a", 1):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a", *names[2:]])


@pytest.mark.parametrize("staged", [staged_file, staged_folder])
def test_two_do_not_write_the_same(tmp_path: Path, staged: object) -> None:
    assert callable(staged)
    with staged(tmp_path / "a", 1), pytest.raises(OutputError, match="another brise is writing"), \
            staged(tmp_path / "a", 1):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), staged_file(tmp_path / "a", 1, replaces=True) as file:
        file.write(b"half")
        raise KeyError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]
    with staged_file(tmp_path / "a", 1, replaces=True) as file:
        file.write(b"new")
    assert (tmp_path / "a").read_text() == "new"
