"""Installs packages in the versions of constraints.txt, and only files whose SHA-256 stands there.

usage: python scripts/locked.py [options of pip install] REQUIREMENT...

pip cannot resolve and check hashes of constraints in one run. So it resolves first, with the versions alone; what it
chose is looked up here; and then exactly that is installed, by hash. A project folder or a wheel of ours has no hash
there: it is installed last, without its dependencies.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)(?: ;.*?)?(?= \\| --|$)")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def read_constraints(text: str) -> Mapping[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each package."""
    found = {}
    for entry in re.split(r"\n(?=\S)", text):
        if (pin := PIN.match(entry)) is not None:
            found[plain(pin[1])] = (pin[2], frozenset(HASH.findall(entry)))
    return found


def pins(text: str) -> str:
    """The constraints without their hashes."""
    return "".join(f"{pin[0]}\n" for line in text.splitlines() if (pin := PIN.match(line)) is not None)


def chosen(report: Mapping[str, object], known: Mapping[str, tuple[str, frozenset[str]]]
           ) -> tuple[list[str], list[str]]:
    """What pip chose as requirements with hashes, and what is not there; projects of ours are neither."""
    requirements, wrong = [], []
    for item in report["install"]:  # type: ignore[attr-defined]
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if plain(name) == "brise":
            continue
        pinned, hashes = known.get(plain(name), ("", frozenset()))
        if pinned != version.partition("+")[0] or not hashes:
            wrong.append(f"{name}=={version}" + (f" (constraints.txt has {pinned})" if pinned else ""))
        requirements.append(" ".join([f"{name}=={version}", *(f"--hash=sha256:{each}" for each in sorted(hashes))]))
    return requirements, wrong


def plain(name: str) -> str:
    """A package's name as the index normalizes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_ours(argument: str) -> bool:
    """Whether it is the project's folder or its wheel, with extras or without."""
    path = argument.partition("[")[0]
    return path == "." or path.endswith(".whl")


def install(arguments: Sequence[str]) -> None:
    """Resolves, checks, installs."""
    text = CONSTRAINTS.read_text()
    with tempfile.TemporaryDirectory() as folder:
        report, versions, locked = (Path(folder) / name for name in ("report.json", "pins.txt", "locked.txt"))
        versions.write_text(pins(text))
        pip(["-q", "--dry-run", "--ignore-installed", "--report", str(report), "-c", str(versions), *arguments])
        requirements, wrong = chosen(json.loads(report.read_text()), read_constraints(text))
        if wrong:
            sys.exit(f"error: not in constraints.txt with a hash: {', '.join(wrong)}\nhint: scripts/lock adds it")
        locked.write_text("\n".join(requirements))
        options = [argument for argument in arguments if argument.startswith("-") or argument == ":all:"]
        if requirements:
            pip([*options, "--no-deps", "--require-hashes", "-r", str(locked)])
    ours = [argument.partition("[")[0] for argument in arguments if is_ours(argument)]
    if ours:
        pip([*options, "--no-deps", "--no-build-isolation", *ours])


def pip(arguments: Iterable[str]) -> None:
    """Runs `pip install`; its output goes to stderr."""
    command = [sys.executable, "-m", "pip", "install", *arguments]
    if (code := subprocess.run(command, check=False, stdout=sys.stderr).returncode) != 0:
        sys.exit(code)


if __name__ == "__main__":
    install(sys.argv[1:])
