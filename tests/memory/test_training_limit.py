"""A training run on the real model stays under its planned memory, to the end of its parity test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

MAIN = """
import sys
from brise.cli.main import main
status = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""


def tune(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", MAIN, "tune", *map(str, words)], capture_output=True, text=True)


@pytest.mark.parametrize("options", [("--method", "lora", "--checkpointing", "on"), ("--method", "qlora")])
def test_a_run_keeps_its_limit(options: tuple[str, ...], smollm2_path: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{number} " + "the wind and the sea " * 15, "completion": "yes"})
                            + "\n" for number in range(20)))
    words = (data, "--model", smollm2_path, "--out", tmp_path / "run", "--dtype", "float32", "--steps", 1,
             "--batch-size", 6, "--batch-tokens", 512, "--eval-rows", 2, "--parity-rows", 2, "--json", *options)
    plan = json.loads(tune(*words, "--dry-run").stdout.splitlines()[1])
    done = tune(*words, "--memory", plan["total"] + 20_000_000)  # the measured process differs from run to run
    assert done.returncode == 0, done.stdout + done.stderr
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert peak is not None and int(peak[1]) * 1024 <= plan["total"] + 20_000_000
