"""constraints.txt names a hash for each file, and what pip chose is checked against it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import locked  # scripts/ is on the path (pyproject.toml)

ROOT = Path(__file__).parent.parent
A, B, C = (letter * 64 for letter in "abc")
TEXT = f"""# made
numpy==2.3.5 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
backports-zstd==1.8.0 ; python_full_version < '3.14' \\
    --hash=sha256:{C}
"""


def test_every_package_has_hashes_and_every_dependency_is_there() -> None:
    known = locked.read_constraints((ROOT / "constraints.txt").read_text())
    assert all(hashes for _, hashes in known.values()) and len(known) > 100
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["build-system"]["requires"], *project["project"]["dependencies"],
              *(each for name, extra in extras.items() if name != "bench" for each in extra)]
    names = {locked.plain(each.partition(";")[0].split("[")[0].strip().split("=")[0].split("<")[0].split(">")[0])
             for each in wanted}
    assert names - known.keys() == set(), "scripts/lock adds them"


def test_versions_go_to_pip_without_hashes_but_with_markers() -> None:
    assert locked.pins(TEXT) == "numpy==2.3.5\nbackports-zstd==1.8.0 ; python_full_version < '3.14'\n"


@pytest.mark.parametrize(("name", "version", "wrong"), [
    ("numpy", "2.3.5", []), ("numpy", "2.3.5+local", []), ("Backports.zstd", "1.8.0", []),
    ("numpy", "2.4.0", ["numpy==2.4.0 (constraints.txt has 2.3.5)"]), ("evil", "1", ["evil==1"])])
def test_what_pip_chose_is_installed_by_hash_or_refused(name: str, version: str, wrong: list[str]) -> None:
    report = {"install": [{"metadata": {"name": name, "version": version}},
                          {"metadata": {"name": "brise", "version": "0.2.0"}}]}
    (requirement,), refused = locked.chosen(report, locked.read_constraints(TEXT))
    assert refused == wrong and requirement.startswith(f"{name}=={version}")
    assert wrong or "--hash=sha256:" in requirement
