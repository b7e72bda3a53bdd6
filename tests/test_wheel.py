"""What a wheel holds: everything but the extension module is packed here, without a compiler or a network."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from scikit_build_core import build as backend

import brise

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder, here = tmp_path_factory.mktemp("wheel"), Path.cwd()
    os.chdir(ROOT)  # where a build back-end is called
    try:
        name = backend.build_wheel(str(folder), {"wheel.cmake": "false", "build-dir": str(folder / "build")})
    finally:
        os.chdir(here)
    with zipfile.ZipFile(folder / name) as packed:
        yield packed


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(wheel.read(f"brise-{brise.__version__}.dist-info/METADATA").decode())


def test_the_wheel_has_every_source_file_and_the_type_marker(wheel: zipfile.ZipFile) -> None:
    sources = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "brise").rglob("*.py")}
    packed = set(wheel.namelist())
    assert sources <= packed
    assert "brise/py.typed" in packed


def test_the_wheel_has_the_files_of_the_page_and_their_licences(wheel: zipfile.ZipFile) -> None:
    folder = ROOT / "src" / "brise"
    files = [path for path in (folder / "page").rglob("*") if path.suffix in (".js", ".css", ".html", ".txt")]
    assert len(files) > 10
    for path in (*files, folder / "report" / "components.css"):
        assert wheel.read(str(path.relative_to(ROOT / "src"))) == path.read_bytes()


def test_the_wheel_has_the_licences_word_for_word(wheel: zipfile.ZipFile, metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "LICENSE-third-party"]
    for name in metadata.get_all("License-File") or ():
        packed = wheel.read(f"brise-{brise.__version__}.dist-info/licenses/{name}")
        assert packed == (ROOT / name).read_bytes()


def test_the_metadata_say_version_authors_and_where_to_go(metadata: Message) -> None:
    assert metadata["Version"] == brise.__version__
    assert metadata["Author"] == "The brise authors"
    urls = dict(line.split(", ") for line in metadata.get_all("Project-URL") or ())
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Security"} == set(urls)
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or ())


def test_the_changelog_has_an_entry_of_this_version() -> None:
    assert f"## [{brise.__version__}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
