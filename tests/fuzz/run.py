"""Fuzzes every parser, each in a process of its own, and prints a table. scripts/fuzz starts it.

The corpus (inputs that reached new code) stays in the output folder and is where the next run begins. A finding is an
outcome that is neither "ok" nor one of brise's own errors, or takes too long or too much memory for its input's length.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path

from tests.fuzz.parsers import ALL, named
from tests.fuzz.target import Target

ROOT = Path(__file__).parents[2]
HANGS_S, MOST_MB = 30, 4096  # libFuzzer ends the process over these
LEAST_S = 3.0  # a process takes two to start


@dataclass
class Row:
    """What came of one parser."""

    name: str
    inputs: int = 0
    slowest_s: float = 0.0
    findings: dict[str, Path] = field(default_factory=dict)


def fuzz(out: Path, seeds: Path | None, seconds: float, name: str) -> Row:
    """Fuzzes one parser for so long; a process that dies is a finding, and another one takes over."""
    target, row = named(name), Row(name)
    folder = out / name.replace(", ", "-").replace(" ", "-")
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in (*target.seeds(), *_more_seeds(seeds, target.max_bytes)):
        (corpus / sha256(seed).hexdigest()[:20]).write_bytes(seed)
    end_s = time.monotonic() + seconds
    while (left_s := end_s - time.monotonic()) > LEAST_S or not row.inputs:
        before = set(folder.iterdir())
        code = _run(target, folder, max(left_s, LEAST_S))
        _add(row, folder)
        dead = sorted(set(folder.glob("*-*")) - before - set(folder.glob("finding-*")))
        if code:
            row.findings[f"the process ended with {code}"] = dead[0] if dead else folder / "log"
            if not row.inputs:
                break
    return row


def _run(target: Target, folder: Path, seconds: float) -> int:
    (folder / "tally.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.child", target.name, str(folder), str(folder / "corpus"),
               f"-max_total_time={seconds:.0f}", f"-timeout={HANGS_S}", f"-rss_limit_mb={MOST_MB}",
               f"-max_len={target.max_bytes}", f"-artifact_prefix={folder}/", "-print_final_stats=1"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        return subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False).returncode


def _add(row: Row, folder: Path) -> None:
    tally = folder / "tally.json"
    if tally.is_file():
        said = json.loads(tally.read_text())
        row.inputs += said["inputs"]
        row.slowest_s = max(row.slowest_s, said["slowest_s"])
        row.findings |= {what: folder / file for what, file in said["findings"].items()}


def _more_seeds(folder: Path | None, max_bytes: int) -> list[bytes]:
    if folder is None:
        return []
    return [path.read_bytes() for path in sorted(folder.iterdir())
            if path.is_file() and 0 < path.stat().st_size <= max_bytes]


def table(rows: Sequence[Row]) -> str:
    """Parser, inputs, findings and slowest input; then what was found, and where its input lies."""
    wide = max(len(row.name) for row in rows)
    lines = [f"{'parser':{wide}}  {'inputs':>9}  findings  slowest"]
    lines += [f"{row.name:{wide}}  {row.inputs:9,}  {len(row.findings):8}  {1000 * row.slowest_s:5.0f} ms"
              for row in rows]
    lines.append(f"{sum(row.inputs for row in rows):,} inputs, {sum(len(row.findings) for row in rows)} findings")
    lines += [f"{row.name}: {what}\n    {path}" for row in rows for what, path in row.findings.items()]
    return "\n".join(lines)


def main() -> int:
    """Exit status 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzzes every parser.")
    parser.add_argument("minutes", type=float, help="for all parsers together, on one process after the other")
    parser.add_argument("--only", metavar="TEXT", default="", help="only parsers whose name holds this")
    parser.add_argument("--seeds", metavar="FOLDER", type=Path, help="files to begin with, for every parser")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument("--processes", type=int, default=1, help="parsers that are fuzzed at once (default: 1)")
    given = parser.parse_args()
    names = [target.name for target in ALL if given.only in target.name]
    if not names:
        parser.error(f"no parser is called {given.only!r}; there are {', '.join(target.name for target in ALL)}")
    seconds = given.minutes * 60 * given.processes / len(names)
    with ThreadPoolExecutor(given.processes) as pool:
        rows = list(pool.map(partial(fuzz, given.out.resolve(), given.seeds, seconds), names))
    print(table(rows))
    return int(any(row.findings for row in rows))


if __name__ == "__main__":
    sys.exit(main())
