"""bench/gpu.py ends by itself when its time is over, and reads llama-bench's JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.backends.vulkan.driver import require_driver

BENCH = Path(__file__).resolve().parents[1] / "bench"
# Answers as llama-bench -o json does: a row for each prompt's length, or for each depth of decode.
LLAMA_BENCH = """#!{python}
import json, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rows = [dict(n_prompt=int(length), n_gen=0, n_depth=0, avg_ts=100.0 * int(length)) for length in words["-p"].split(",")
        if length != "0"]
rows += [dict(n_prompt=0, n_gen=int(words["-n"]), n_depth=int(depth), avg_ts=20.125 + int(depth))
         for depth in words.get("-d", "").split(",") if depth]
print(json.dumps([dict(row, build_commit="abc123", backends="Vulkan") for row in rows]))
"""


def program(folder: Path, text: str) -> Path:
    path = folder / "llama-bench"
    path.write_text(text.format(python=sys.executable), encoding="utf-8")
    path.chmod(0o755)
    return path


def llama(tool: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCH / "worker_gpu.py"), "llama", "--model", "m.gguf", "--depths",
                           "32,4096", "--prompt", "512", "--decode", "64", "--runs", "3", "--llama-bench", str(tool)],
                          capture_output=True, text=True, timeout=120)


def test_figures_of_llama_bench_are_read_by_depth(tmp_path: Path) -> None:
    run = llama(program(tmp_path, LLAMA_BENCH))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {"version": "abc123 Vulkan", "depths": [
        {"depth": 32, "prefill": 51200.0, "decode": 52.12}, {"depth": 4096, "prefill": 409600.0, "decode": 4116.12}]}


def test_a_llama_bench_that_fails_is_named_by_what_it_said(tmp_path: Path) -> None:
    run = llama(program(tmp_path, "#!{python}\nraise SystemExit('no such model')\n"))
    assert run.returncode and "no such model" in run.stderr


def test_all_models_end_by_themselves_and_what_had_no_time_is_named(tmp_path: Path) -> None:
    require_driver()
    words = ["--seconds", "1", "--folder", str(tmp_path), "--json", str(tmp_path / "gpu.json"), "--llama-bench",
             str(program(tmp_path, LLAMA_BENCH))]
    run = subprocess.run([sys.executable, str(BENCH / "gpu.py"), *words], capture_output=True, text=True, timeout=280)
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert run.returncode == 1 and not document["speed"] and document["left_out"]
    for line in document["left_out"]:  # no time for anything, or on a fast machine none to write models
        assert line.startswith("everything: not done after 1 s") or "s are left, writing it takes about" in line
        assert f"- {line}" in run.stdout
