"""Files that version 0.1 wrote are read as they were: stores, ledgers, certificates, adapters, runs, answers.

tests/stored/v0_1 holds them, made at commit 2e0fa6d by tests/stored/make_v0_1.py, and in expected/ what the commands
below said of them then. They are read through the command line, so that this file knows no module but the command.
Sentences are not compared where a command makes them up, for they may be put better; numbers and names are.
What 0.1 got wrong stands corrected in expected/: an answer that was cut with status 200 is a failure (report_wind), and
where answers that agree have no label, nobody knows how good each model is by itself (prove_pairs).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from tests.stored.machine import numpy_kind, processor_vendor

STORED = Path(__file__).parent / "stored" / "v0_1"
UNITS = 90  # of the planted task `tickets`
PROVE = ("--delta", "10", "--without", "latency", "--slice-delta", "30", "--valid-margin", "20", "--refusal-margin",
         "20")
EVAL = "eval data.jsonl --model tiny --max-tokens 4 --sample 10 --threads 1 --json"
COMMANDS: Mapping[str, str] = {
    "log_list_tickets": "log list --task tickets --limit 5 --json",
    "log_search": "log search föhn --json",
    "log_stats": "log stats --json",
    "log_export": "log export --task wind --answer best --include-gate",
    "audit": "audit --json",
    "switch": "switch --status --json",
    "cascade": "cascade tickets --risk 20 --delta 20 --labels outcome --json",
    "report_tickets": "report --task tickets --json",
    "report_wind": "report --task wind --model tiny --adapter lora --json",
    "prove": f"prove --task tickets {' '.join(PROVE)} --certificate again.json --json",
    "prove_pairs": "prove --pairs pairs.jsonl --judgements verdicts.jsonl --json",
    "prove_verify": "prove --verify certificate.json --json",
    "models": "models list --json",
    "models_hf": "models show tiny-hf --json",
    "chat": "chat tiny --temperature 0 --max-tokens 12 --threads 1 ticket 3",
    "chat_hf": "chat tiny-hf --temperature 0 --max-tokens 12 --threads 1 ticket 3",
    "chat_lora": "chat tiny --adapter lora --temperature 0 --max-tokens 12 --threads 1 ticket 3",
    "chat_dora": "chat tiny --adapter dora --temperature 0 --max-tokens 12 --threads 1 ticket 3",
    "eval": f"{EVAL} --out answers.jsonl",
}
VARYING: Mapping[str, tuple[str, ...]] = {"report": ("made_s",), "eval": ("seconds",)}  # times of today
# Sentences, and advice, in the output of commands that otherwise show what is stored.
MADE_UP = frozenset(("what", "why_not_up", "next"))
SHOWING = ("log", "audit", "switch", "chat", "models")

QUANTIZED = "small.gguf"
QUANTIZE = f"quantize tiny {QUANTIZED} --to Q4_0 --requantize --calibration importance.gguf --threads 1 --json"
EXPORTS: Mapping[str, str] = {
    "lora.gguf": "export tiny lora.gguf --adapter lora --format gguf-lora --dtype f32 --json",
    "merged-lora.gguf": "export tiny merged-lora.gguf --adapter lora --merge --format gguf --dtype f32 --json",
    "merged-dora.gguf": "export tiny merged-dora.gguf --adapter dora --merge --format gguf --dtype f32 --json"}

TUNE = ("data.jsonl", "--model", "tiny", "--threads", "1", "--dtype", "float32", "--batch-size", "8", "--rank", "2",
        "--lr", "0.01", "--eval-every", "5", "--parity-rows", "0")
RUN = ("--steps", "40", "--dropout", "0.1", "--targets", "q_proj,v_proj")
# Sums of torch then have one order on every processor of a kind.
RECORDED_BY = "AuthenticAMD"  # the processor of the run in `tune`: MKL's kernels depend on it, whatever it is told
ENVIRONMENT = {"TZ": "UTC", "BRISE_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE",
               "ONEDNN_MAX_CPU_ISA": "SSE41", "OMP_NUM_THREADS": "1"}
# One process for all that needs torch. `exported.jsonl` is what `log export` writes today.
TUNING = """
import contextlib, io, json, sys
from brise.cli.main import main
for words in json.loads(sys.argv[1]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(words)
    print(json.dumps([status, out.getvalue()]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with copied(STORED) as made:
        yield made


def expected(name: str) -> Any:
    return json.loads((STORED / "expected" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_version_0_1_said(name: str, folder: Path) -> None:
    words = COMMANDS[name]
    known = comparable(expected(name), words)
    assert without_additions(comparable(said(folder, words), words), known) == known


def test_every_exchange_is_there_with_its_answers_and_labels(folder: Path) -> None:
    listed = said(folder, "log list --task wind --limit 100 --json")["out"]
    shown = expected("log_show")
    assert [one["id"] for one in listed] == list(shown)
    for id, show in shown.items():
        assert without_additions(said(folder, f"log show {id} --json"), show) == show
    kinds = {one["kind"] for one in listed}
    assert kinds == {"chat", "completion", "responses", "messages", "embedding"}
    roles = {answer["role"] for show in shown.values() for answer in show["out"]["answers"]}
    assert roles == {"shadow", "reask", "reanswer", "draft", "audit"}


def test_the_ledger_goes_on_behind_its_stored_lines(folder: Path) -> None:
    before = expected("audit")["out"]
    assert said(folder, "switch tickets --back --json")["status"] == 0
    assert said(folder, f"audit --expect {before['last_digest']} --json")["status"] == 0
    after = said(folder, "audit --json")["out"]
    assert after["is_whole"] and after["lines"] == before["lines"] + 1
    assert after["events"][:-1] == before["events"]


def test_the_certificate_is_genuine_for_a_machine_without_its_key(folder: Path) -> None:
    shutil.rmtree(folder / "home" / "gateway")
    checks = said(folder, "prove --verify certificate.json --json")["out"]["checks"]
    assert {check["check"]: check["passed"] for check in checks} == {"signature": True, "path": True, "time": True}


def test_a_forgotten_subject_is_forgotten(folder: Path) -> None:
    assert said(folder, "log forget anna")["status"] == 0
    bodies = [one["request"] for one in said(folder, "log list --task wind --limit 100 --json")["out"]]
    assert bodies.count(None) == 2


def test_the_stored_importance_gives_the_same_model(folder: Path) -> None:
    assert said(folder, QUANTIZE)["status"] == 0
    assert digest(folder / QUANTIZED) == expected("digests")["written"][QUANTIZED]


@pytest.mark.parametrize("name", EXPORTS)
def test_an_adapter_is_written_with_the_same_bits(name: str, folder: Path) -> None:
    found = expected("digests")
    if "merged" in name and found["numpy"] != numpy_kind():
        pytest.skip(f"products were recorded with {found['numpy']}, this is {numpy_kind()}")
    assert said(folder, EXPORTS[name])["status"] == 0
    assert digest(folder / name) == found["written"][name]


def test_an_interrupted_run_goes_on_to_the_bits_of_one_that_was_not() -> None:
    """And rows that a hosted model answered are trained on if the stored rights allow it, and not otherwise."""
    found, known = tuned(STORED), expected("tune")
    assert found["statuses"] == known["statuses"] == [0, 0, 1, 0]
    assert without_additions(found["rows"], known["rows"]) == known["rows"]
    if processor_vendor() != RECORDED_BY or version("torch").partition("+")[0] != known["torch"]:
        pytest.skip(f"the bits were recorded on {RECORDED_BY} with torch {known['torch']}")
    assert found["adapter"] == known["adapter"] == expected("digests")["tune"]["adapter_model.safetensors"]


# What the tests and make_v0_1.py share


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def copied(source: Path) -> Iterator[Path]:
    """The files in a folder of their own, with the modes that keys need, which git does not keep."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "v0_1"
        shutil.copytree(source, folder, symlinks=True, ignore=shutil.ignore_patterns("expected"))
        for path in (folder / "home" / "gateway" / "keys").iterdir():
            path.chmod(0o600)
        yield folder


def said(folder: Path, words: str) -> dict[str, Any]:
    """Exit status and stdout of a command that runs in the folder, JSON if it is some; its path is FOLDER."""
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "BRISE_HOME": str(folder / "home")}.items():
            patch.setenv(name, value)
        status = main(words.split())
    return {"status": status, "out": parsed(out.getvalue().replace(str(folder), "FOLDER"))}


def tuned(source: Path) -> dict[str, Any]:
    """The run in `run` to its end, and what is said of rows that need a right, without and with it."""
    export = ["log", "export", "--task", "wind", "--include-gate", "--out", "exported.jsonl"]
    plan = ["tune", "exported.jsonl", *TUNE[1:], "--out", "other", "--dry-run", "--json", "--held-out-count", "4"]
    commands = [["tune", *TUNE, *RUN, "--out", "run", "--resume"], export, plan, [*plan, "--rights", "rights.toml"]]
    with copied(source) as folder:
        command = [sys.executable, "-c", TUNING, json.dumps(commands)]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env={
            **os.environ, **ENVIRONMENT, "BRISE_HOME": str(folder / "home")})
        statuses, outs = zip(*map(json.loads, ended.stdout.splitlines()), strict=True)
        return {"statuses": list(statuses), "rows": parsed(outs[-1])[0], "torch": version("torch").partition("+")[0],
                "adapter": digest(folder / "run" / "adapter" / "adapter_model.safetensors")}


def parsed(text: str) -> Any:
    """One JSON value, a list of one a line, or the text."""
    for parts in ([text], text.splitlines()):
        with contextlib.suppress(ValueError):
            found = [json.loads(part) for part in parts]
            return found[0] if len(found) == 1 else found
    return text


def without_additions(value: Any, known: Any) -> Any:
    """Without the keys that came later: a reader of JSON passes over them. What was there then is compared."""
    if isinstance(value, dict) and isinstance(known, dict):
        return {key: without_additions(item, known[key]) for key, item in value.items() if key in known}
    if isinstance(value, list) and isinstance(known, list) and len(value) == len(known):
        return [without_additions(item, then) for item, then in zip(value, known, strict=True)]
    return value


def comparable(value: Any, words: str, name: str = "") -> Any:
    """Without times of today, and without sentences that the command made up.

    Numbers are compared to 12 digits: a sum of 90 costs in another order, as BLAS has on another processor, differs by
    at most 90 times 2^-53, or 1e-14, of itself.
    """
    command = words.split()[0]
    if isinstance(value, dict):
        return {key: comparable(item, words, key) for key, item in value.items()
                if key not in VARYING.get(command, ())}
    if isinstance(value, list):
        return [comparable(item, words, name) for item in value]
    if isinstance(value, float):
        return float(f"{value:.12g}")
    if isinstance(value, str) and (name in MADE_UP or (command not in SHOWING and value.count(" ") > 2)):
        return "..."
    return value
