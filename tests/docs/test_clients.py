"""The page about clients shows what was measured, and gives a reason for each cell that fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tables_are_those_of_the_results_and_no_cell_fails_without_a_reason() -> None:
    done = subprocess.run([sys.executable, ROOT / "bench/clients/page.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
