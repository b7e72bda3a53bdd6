"""Installs each client into a folder of its own, with the newest versions, and says which they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from table import HERE, Client


def install(client: Client, cache: Path) -> Path:
    """The folder of the client; what is installed there already is kept."""
    folder = cache / client.name
    folder.mkdir(parents=True, exist_ok=True)
    if client.is_node and not (folder / "node_modules").exists():
        (folder / "package.json").write_text('{"private": true}')
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *client.packages], folder)
    elif not client.is_node and not (folder / "venv" / "installed").exists():
        _run([sys.executable, "-m", "venv", "venv"], folder)
        _run([str(folder / "venv/bin/pip"), "install", "--quiet", *client.packages], folder)
        (folder / "venv" / "installed").touch()
    return folder


def command(client: Client, folder: Path) -> list[str]:
    """Runs the client's script; Node looks for modules beside the script, so that one is copied."""
    if not client.is_node:
        return [str(folder / "venv/bin/python"), str(HERE / client.script)]
    for name in ("cells.mjs", client.script):
        (folder / name).write_bytes((HERE / name).read_bytes())
    return ["node", str(folder / client.script)]


def versions(client: Client, folder: Path) -> dict[str, str]:
    """The version of each package that was asked for."""
    if client.is_node:
        return {name: json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]
                for name in client.packages}
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    shown = subprocess.run([str(folder / "venv/bin/python"), "-c", code, client.package], check=True,
                           capture_output=True, text=True)
    return {client.package: shown.stdout.strip()}


def _run(line: list[str], folder: Path) -> None:
    with (folder / "install.log").open("a") as log:
        subprocess.run(line, cwd=folder, check=True, stdout=log, stderr=log)
