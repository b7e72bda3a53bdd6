"""The page docs/clients.md: tables from results.json, and what reasons.toml says about cells.

Alone it checks that the page is up to date, and that every cell that fails has a reason.
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from table import CLIENTS, COLUMNS, HERE

PAGE = HERE.parent.parent / "docs" / "clients.md"
BEGIN, END = "<!-- cells: bench/clients/run.py -->", "<!-- end of cells -->"
SIGNS = {"works": "yes", "none": "-", "fails": "NO"}


def write(results: dict[str, Any]) -> None:
    """Puts the tables between the two comments of the page; the text around them is written by hand."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(results)}\n{END}{after}")


def tables(results: dict[str, Any]) -> str:
    """A table of versions with dates, and one of cells; two signs stand for the local model and the gateway."""
    notes = list(reasons())
    lines = ["| client | version | run on |", "|---|---|---|"]
    for client in CLIENTS:
        if client.name in results:
            row = results[client.name]
            shown = ", ".join(f"{name} {version}" for name, version in row["versions"].items() if name != "zod")
            lines.append(f"| {client.name} | {shown} | {row['date']} |")
    lines += ["", f"| client | API | {' | '.join(COLUMNS.values())} |", "|---|---" + "|---" * len(COLUMNS) + "|"]
    for name, api, cells in rows(results):
        shown = [_sign(name, api, cells.get(column, {}), column, notes) for column in COLUMNS]
        lines.append(f"| {name} | {api} | {' | '.join(shown)} |")
    lines += ["", *(f"{number}. {entry['why']}" for number, entry in enumerate(reasons().values(), 1))]
    return "\n".join(lines) + "\n"


def rows(results: dict[str, Any]) -> list[tuple[str, str, dict[str, dict[str, str]]]]:
    """Client, API, and for each cell the result by target."""
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for client in CLIENTS:
        for cell in results.get(client.name, {}).get("cells", []):
            row = found.setdefault((client.name, cell["api"]), {})
            row.setdefault(cell["cell"], {})[cell["target"]] = cell["result"]
    return [(name, api, cells) for (name, api), cells in found.items()]


def unexplained(results: dict[str, Any]) -> list[str]:
    """Cells that do not work and have no reason, and reasons of cells that work."""
    failing = {(name, api, column) for name, api, cells in rows(results) for column, by_target in cells.items()
               if "fails" in by_target.values()}
    explained = {tuple(entry["cell"]) for entry in reasons().values() if entry["result"] == "refused"}
    return [f"fails, and no reason is given: {cell}" for cell in sorted(failing - explained)] + [
        f"works, and a reason is given: {cell}" for cell in sorted(explained - failing)]


def reasons() -> dict[str, dict[str, Any]]:
    """What is said about cells, by name, in the order of the file."""
    with Path(HERE / "reasons.toml").open("rb") as file:
        return tomllib.load(file)


def _sign(name: str, api: str, by_target: dict[str, str], column: str, notes: list[str]) -> str:
    number = next((f" ({index})" for index, entry in enumerate(reasons().values(), 1)
                   if [name, api, column] == entry["cell"]), "")
    signs = [SIGNS[by_target[target]] for target in ("local", "gateway") if target in by_target]
    shown = signs[0] if len(set(signs)) == 1 else "/".join(signs)
    return f"{shown or '-'}{number}" if signs else "-"


if __name__ == "__main__":
    found = json.loads((HERE / "results.json").read_text())
    wrong = unexplained(found)
    if tables(found) not in PAGE.read_text():
        wrong.append("docs/clients.md has other tables than results.json: run page.write")
    sys.exit("\n".join(wrong) or 0)
