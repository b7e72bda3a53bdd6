"""Measures speculation on the answers of three tasks, and beside llama-server with its own n-gram drafts.

SmolLM2 answers with an adapter that was tuned for the task; a 1.5B with random weights writes the data's own answers,
which takes as long as if it had thought of them. The table of n-grams is made of 300 rows, the answers are others. An
adapter that was tuned badly answers otherwise than the rows, and drafts are then worth less: --answers file writes the
data's answers with SmolLM2, too.
Measuring takes seven minutes on two quiet cores, preparing about ten.

    python bench/speculate.py FOLDER --prepare        # once: tunes three adapters and writes the 1.5B into FOLDER
    python bench/speculate.py FOLDER --peer ~/llama.cpp/build/bin/llama-server
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from brise import settings
from brise.evals.speculation_speed import (
    OFF,
    TOGETHER,
    WARM_UP,
    SpeculationOptions,
    SpeculationSpeedReport,
    measure_speculation,
)
from brise.hub.locate import find_model

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
TASKS = ("snips_calls", "sgd_calls", "pii_presidio")
TUNED = {"snips_calls": 600, "sgd_calls": 96, "pii_presidio": 400}  # rows; a prompt of sgd_calls has 1000 tokens
SHARE = {"sgd_calls": 0.5}  # of the answers that other tasks have, for the same reason
SMALL, LARGE = "smollm2", "qwen2.5-1.5b"
LEARNED, FIRST_HELD_OUT, HELD_OUT = 300, 600, 60  # rows
LARGE_COUNT, PEER_COUNT = 8, 12  # answers at most: each takes seconds
WAIT_S = 300.0


@dataclass(frozen=True)
class Row:
    """One model and task. `gains` and tokens a second are by source of drafts, or by switch of the peer."""

    model: str
    task: str
    tokens_per_s: dict[str, float]
    gains: dict[str, float]
    accepted: float | None  # of what was drafted with all sources together


def main() -> int:
    options = _arguments().parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        _split(options, task)
    if options.prepare:
        _prepare(options)
        return 0
    rows: list[Row] = []
    for task in TASKS:
        adapter = options.folder / task / "adapter"
        has_own = adapter.is_dir() and options.answers == "model"
        rows.append(_row(SMALL, task, measure_speculation(SpeculationOptions(
            SMALL, _held_out(options, task), _count(options, task), "model" if has_own else "file",
            adapter if has_own else None, _learned(options, task), threads=options.threads), _note)))
        if options.peer is not None:
            rows.append(_peer_row(options, task, adapter))
    large = options.folder / f"{LARGE}.gguf"
    for task in TASKS if large.is_file() else ():
        rows.append(_row(LARGE, task, measure_speculation(SpeculationOptions(
            str(large), _held_out(options, task), _count(options, task, LARGE_COUNT), learn=_learned(options, task),
            threads=options.threads, each=False), _note)))
    _print(rows)
    return 0


def _count(options: argparse.Namespace, task: str, most: int = HELD_OUT) -> int:
    """The number of answers of a task."""
    wanted: int = options.count
    return max(round(min(wanted, most) * SHARE.get(task, 1.0)), 2)


def _prepare(options: argparse.Namespace) -> None:
    for task in TASKS:
        if (options.folder / task / "adapter").is_dir():
            continue
        shutil.rmtree(options.folder / task, ignore_errors=True)  # of a run that was interrupted
        _note(f"tuning an adapter for {task}")
        rows = options.folder / f"{task}.tune.jsonl"
        lines = (options.data / task / "train.jsonl").read_text().splitlines(keepends=True)
        rows.write_text("".join(lines[:TUNED[task]]))
        subprocess.run([sys.executable, "-m", "brise", "tune", str(rows), "--model", SMALL,
                        "--out", str(options.folder / task), "--parity-rows", "4"], check=True)
    large = options.folder / f"{LARGE}.gguf"
    if not large.is_file():
        _note(f"writing {large}")
        subprocess.run([sys.executable, str(ROOT / "bench" / "synthesize.py"), "--shape", LARGE, str(large)],
                       check=True)


def _split(options: argparse.Namespace, task: str) -> None:
    """The first rows are learned from, the next ones answered."""
    lines = (options.data / task / "train.jsonl").read_text().splitlines(keepends=True)
    _learned(options, task).write_text("".join(lines[:LEARNED]))
    _held_out(options, task).write_text("".join(lines[FIRST_HELD_OUT:FIRST_HELD_OUT + HELD_OUT]))


def _learned(options: argparse.Namespace, task: str) -> Path:
    return Path(options.folder / f"{task}.learn.jsonl")


def _held_out(options: argparse.Namespace, task: str) -> Path:
    return Path(options.folder / f"{task}.held-out.jsonl")


def _row(model: str, task: str, report: SpeculationSpeedReport) -> Row:
    return Row(model, task, {speed.source: speed.tokens_per_s for speed in report.speeds},
               {speed.source: report.gain(speed) for speed in report.speeds}, report.speeds[-1].acceptance)


def _peer_row(options: argparse.Namespace, task: str, adapter: Path) -> Row:
    """llama-server without drafts and with its own, on the same prompts and the same adapter."""
    lora = options.folder / f"{task}.lora.gguf"
    if adapter.is_dir() and not lora.is_file():
        subprocess.run([sys.executable, "-m", "brise", "export", SMALL, str(lora), "--format", "gguf-lora",
                        "--adapter", str(adapter)], check=True)
    switches = {OFF: [], TOGETHER: options.peer_drafts.split()}
    speeds, accepted = dict[str, float](), None
    for name, words in switches.items():
        _note(f"llama-server, {task}: {' '.join(words) or 'no drafts'}")
        with _peer(options, [*(["--lora", str(lora)] if lora.is_file() else []), *words]) as url:
            speeds[name], accepted = _peer_speed(options, task, url)
    return Row(f"{SMALL}, llama-server", task, speeds,
               {name: speed / speeds[OFF] for name, speed in speeds.items()}, accepted)


@contextmanager
def _peer(options: argparse.Namespace, words: list[str]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = find_model(SMALL, settings.read()).path
    command = [str(options.peer), "--model", str(path), "--port", str(port), "--ctx-size", "4096", "--parallel", "1",
               "--threads", str(options.threads or 2), "--jinja", *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1/chat/completions"
        finally:
            process.terminate()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"llama-server ended with status {process.returncode}")
        try:
            if httpx.get(url, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"llama-server was not ready within {WAIT_S:g} s")


def _peer_speed(options: argparse.Namespace, task: str, url: str) -> tuple[float, float | None]:
    """Tokens a second of all answers but the first few, by the server's own times; and the accepted share."""
    tokens, seconds, drafted, accepted = 0, 0.0, 0, 0
    lines = _held_out(options, task).read_text().splitlines()[:WARM_UP + _count(options, task, PEER_COUNT)]
    for number, line in enumerate(lines):
        answer = httpx.post(url, trust_env=False, timeout=WAIT_S, json={
            "messages": json.loads(line)["messages"][:-1], "temperature": 0, "max_tokens": 256}).raise_for_status()
        times = answer.json()["timings"]
        if number >= WARM_UP:
            tokens, seconds = tokens + times["predicted_n"], seconds + times["predicted_ms"] / 1000
            drafted, accepted = drafted + times.get("draft_n", 0), accepted + times.get("draft_n_accepted", 0)
    return tokens / seconds, accepted / drafted if drafted else None


def _print(rows: list[Row]) -> None:
    print("| model | task | tokens/s without | with drafts | gain | each source alone | accepted |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        alone = ", ".join(f"{name} {gain:.2f}" for name, gain in row.gains.items() if name not in (OFF, TOGETHER))
        accepted = "" if row.accepted is None else f"{row.accepted:.0%}"
        print(f"| {row.model} | {row.task} | {row.tokens_per_s[OFF]:.1f} | {row.tokens_per_s[TOGETHER]:.1f} | "
              f"{row.gains[TOGETHER]:.2f} | {alone} | {accepted} |")
    print(json.dumps([row.__dict__ for row in rows]))


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the adapters, the 1.5B and the rows lie")
    parser.add_argument("--prepare", action="store_true", help="make what is missing in the folder, and stop")
    parser.add_argument("--data", type=Path, default=SHARED, help="the folder of the tasks")
    parser.add_argument("--count", type=int, default=30, help="answers of each task")
    parser.add_argument("--answers", choices=("model", "file"), default="model",
                        help="with SmolLM2: its own with the adapter, or those of the data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", type=Path, help="the llama-server to compare with")
    parser.add_argument("--peer-drafts", default="--spec-type ngram-simple", help="its switches for n-gram drafts")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
