"""The files of the page: how large they are, whose they are, and that those of others are as npm has them."""

from __future__ import annotations

import gzip
import hashlib
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from brise.page.routes import FOLDER, PageFiles

VENDOR = FOLDER / "vendor"
MOST_BYTES, MOST_PACKED, MOST_LINES = 200_000, 70_000, 1500
LISTED = re.compile(r"^([\w.-]+\.js)\n +.*: (\S+) of (\S+@\S+) in .*\n +sha256 ([0-9a-f]{64})$", re.MULTILINE)


def vendored() -> list[tuple[str, str, str, str]]:
    """Name, path in the package, package and SHA-256 of each file, as LICENSES.txt says."""
    return LISTED.findall((VENDOR / "LICENSES.txt").read_text(encoding="utf-8"))


def test_the_page_is_small() -> None:
    files = [*(each.content for each in PageFiles().files.values()), (FOLDER / "index.html").read_bytes()]
    assert sum(map(len, files)) <= MOST_BYTES
    assert sum(len(gzip.compress(content, 9)) for content in files) <= MOST_PACKED


def test_our_own_javascript_is_short() -> None:
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FOLDER.glob("*.js")) <= MOST_LINES


def test_no_file_of_ours_reaches_for_another_host_or_makes_html_of_text() -> None:
    for path in (*FOLDER.glob("*.js"), *FOLDER.glob("*.css"), *FOLDER.glob("*.html")):
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        for line in text.splitlines():
            assert not re.search(r"(src|href|import|url)\W{1,3}https?:|@import|url\(\s*['\"]?//", line), line
            assert not re.search(r"\beval\(|new Function|document\.write|insertAdjacentHTML", line), line


def test_the_files_of_others_are_those_that_are_listed_with_their_digests() -> None:
    known = {name: digest for name, _, _, digest in vendored()}
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDOR.glob("*.js")} == known


@pytest.mark.slow
@pytest.mark.parametrize("name", ["htm-preact.js", "marked.js", "dompurify.js"])
def test_they_are_what_npm_has(name: str, tmp_path: Path) -> None:
    path, package = next((path, package) for each, path, package, _ in vendored() if each == name)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    packed = subprocess.run([npm, "pack", "--silent", package], cwd=tmp_path, capture_output=True, text=True,
                            check=False, timeout=60)
    if packed.returncode != 0:
        pytest.skip("npm's registry cannot be reached")
    with tarfile.open(tmp_path / packed.stdout.strip()) as archive:
        file = archive.extractfile(path)
        assert file is not None and file.read() == (VENDOR / name).read_bytes()
