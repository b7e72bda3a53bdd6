"""All that a machine with a graphics card is asked once, unattended: one table and one file of JSON in ten minutes.

What the device is; the bandwidth of its memory, measured first; whether the answers of a model and every op are those
of the CPU; then prefill and decode at growing depths inside a memory limit, beside llama.cpp and transformers if they
are there. Each measurement is a process of its own: one that fails, hangs or loses the device is a line of the table.
What does not fit into the time is left out and named; what matters most comes first.

    python bench/gpu.py --folder /tmp/gpu --llama-bench ~/llama.cpp/build/bin/llama-bench
    python bench/gpu.py --small                       # on a software device: SmolLM2's sizes, short

The models have random weights (bench/synthesize.py), which are made in --folder and kept there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
WORKER = (sys.executable, str(FOLDER / "worker_gpu.py"))
GB = 10**9


@dataclass(frozen=True)
class BenchModel:
    """A shape and a mix of synthesize.py; `gb` is the file's size, for the time that it takes to write."""

    shape: str
    mix: str
    gb: float
    fits_bf16: bool = False  # in 4 GB
    ram: str = ""  # what the host may take of a model that 4 GB do not hold, on a device with memory of its own

    @property
    def file(self) -> str:
        return f"{self.shape}-{self.mix}.gguf".lower()


# In the order of their importance, as time may end before the last.
MODELS: Mapping[str, BenchModel] = {
    "smollm2": BenchModel("smollm2-135m", "Q4_1", 0.1, fits_bf16=True), "3b": BenchModel("ministral3-3b", "Q4_0", 2.0),
    "1.5b": BenchModel("qwen2.5-1.5b", "Q4_K_M", 1.1, fits_bf16=True),
    "8b": BenchModel("ministral3-8b", "Q4_0", 4.8, ram="8GB")}
PROMPT = 512  # tokens of a prefill; at a greater depth it is as long as that
NOT_MEASURED = "-"


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    device: str
    memory: str
    models: tuple[str, ...]
    depths: tuple[int, ...]
    prompt: int
    decode: int
    runs: int
    op_tests: tuple[str, ...]  # what pytest is given
    parity_texts: int
    parity_tokens: int  # of each answer
    bandwidth_bytes: int


@dataclass
class Results:
    """All that was found; `left_out` says what was not, and why."""

    device: dict[str, Any] = field(default_factory=dict)
    bandwidth_gb_s: float | None = None
    ops: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    speed: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Clock:
    """The time that is left of the whole run."""

    def __init__(self, seconds: float) -> None:
        self._start, self._end = time.monotonic(), time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return self._end - time.monotonic()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._start


def main() -> int:
    given = _arguments().parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    plan = _plan(given)
    clock, results = Clock(given.seconds), Results()
    try:
        _measure(plan, given, clock, results)
    except KeyboardInterrupt:
        results.left_out.append("all that would have followed: it was interrupted")
    results.seconds = round(clock.spent_s, 1)
    document = {"plan": asdict(plan), **asdict(results)}
    given.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(_lines(results)) + f"\n\nin {results.seconds:.0f} s; all figures: {given.json}\n")
    is_right = results.parity.get("passed", False) and not results.ops.get("failed")
    return 0 if results.speed and is_right else 1


def _plan(given: argparse.Namespace) -> Plan:
    if given.small:
        return Plan(given.device, given.memory, ("smollm2",), (16, 64), 32, 4, 1,
                    ("tests/backends/vulkan/test_device.py",), 1, 4, 64 << 20)
    return Plan(given.device, given.memory, given.models, given.depths, PROMPT, 64, 3,
                ("tests/backends", "-k", "vulkan"), 4, 32, 512 << 20)


def _measure(plan: Plan, given: argparse.Namespace, clock: Clock, results: Results) -> None:
    words = ["--device", plan.device, "--memory", plan.memory]
    _say("device and bandwidth")
    facts = _read([*WORKER, "facts", *words, "--bytes", str(plan.bandwidth_bytes)], min(60, clock.left_s))
    results.device = facts
    results.bandwidth_gb_s = facts.pop("bandwidth_gb_s", None)
    if "error" in facts:
        results.left_out.append(f"everything: {facts['error']}")
        return
    models = {name: path for name in plan.models if (path := _written(MODELS[name], given.folder, clock, results))}
    if "smollm2" in models:
        _say("parity with the CPU")
        sizes = ["--runs", str(plan.parity_texts), "--decode", str(plan.parity_tokens)]
        results.parity = _read([*WORKER, "parity", *words, *sizes, "--model", str(models["smollm2"])],
                               min(90, clock.left_s))
    _say("op table")
    results.ops = _op_table(plan, min(120, 0.25 * clock.left_s))
    for name, path in models.items():
        ram = "" if facts["is_shared"] else MODELS[name].ram
        memory = f"vram={plan.memory},ram={ram}" if ram else plan.memory
        for engine, command in _engines(given, plan, name, path, ["--device", plan.device, "--memory", memory]):
            least = 5.0 + 4 * MODELS[name].gb
            if clock.left_s < least:
                results.left_out.append(f"{name} by {engine}: {clock.left_s:.0f} s were left, it needs {least:.0f}")
                continue
            _say(f"{name} by {engine}, {clock.left_s:.0f} s left")
            share = clock.left_s if name == list(models)[-1] else 0.6 * clock.left_s
            results.speed.append({"model": name, "engine": engine, "file_bytes": path.stat().st_size,
                                  **_read(command, share)})


def _engines(given: argparse.Namespace, plan: Plan, name: str, path: Path,
             words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Who is measured, and by which command; each prints one line of JSON."""
    sizes = ["--depths", ",".join(map(str, plan.depths)), "--prompt", str(plan.prompt), "--decode", str(plan.decode),
             "--runs", str(plan.runs)]
    yield "brise", [*WORKER, "speed", *words, *sizes, "--model", str(path)]
    for label, program in (("llama.cpp", given.llama_bench), ("llama.cpp 2", given.llama_bench_2)):
        if program is not None:
            yield label, [*WORKER, "llama", *sizes, "--model", str(path), "--llama-bench", program]
    if given.transformers and MODELS[name].fits_bf16:
        yield "transformers", [*WORKER, "transformers", *sizes, "--model", MODELS[name].shape]


def _written(model: BenchModel, folder: Path, clock: Clock, results: Results) -> Path | None:
    """The model's file, made if it is not there and there is time for it."""
    path = folder / model.file
    needed = 10 + 25 * model.gb
    if path.exists():
        return path
    if clock.left_s < 2 * needed:
        results.left_out.append(f"{model.file}: {clock.left_s:.0f} s are left, writing it takes about {needed:.0f}")
        return None
    _say(f"writing {model.file}, {model.gb:g} GB")
    command = [sys.executable, str(FOLDER / "synthesize.py"), "--shape", model.shape, "--mix", model.mix]
    if model.shape.startswith("ministral"):
        command += ["--tekken", str(_tekken())]
    part = path.with_suffix(".part")
    try:
        subprocess.run([*command, str(part)], check=True, timeout=clock.left_s / 2, cwd=FOLDER,
                       stdout=subprocess.DEVNULL)
    except (subprocess.SubprocessError, OSError) as error:
        part.unlink(missing_ok=True)
        results.left_out.append(f"{model.file}: {str(error)[:300]}")
        return None
    part.rename(path)
    return path


def _tekken() -> Path:
    import mistral_common  # noqa: PLC0415 - for the models of Mistral only

    return sorted((Path(mistral_common.__file__).parent / "data").glob("tekken_*.json"))[0]


def _op_table(plan: Plan, seconds: float) -> dict[str, Any]:
    """The tests of the ops on this device, counted."""
    command = [sys.executable, "-m", "pytest", "-vv", "-x", "-p", "no:cacheprovider", "-n", "0", *plan.op_tests]
    started = time.monotonic()
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        text, note = run.stdout + run.stderr, ""
        if run.returncode not in (0, 1):  # not of the tests' making
            note = f"pytest: {text.strip().rpartition(chr(10))[2][:200]}"
    except subprocess.TimeoutExpired as error:
        text, note = (error.stdout or b"").decode(errors="replace"), f"stopped after {seconds:.0f} s"
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", text)}
    if not counts:  # pytest counts at its end only
        words = ("PASSED", "FAILED", "SKIPPED", "ERROR")
        counts = {word.lower(): len(re.findall(rf" {word}\b", text)) for word in words}
    failed = [line.strip()[:200] for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return {"passed": counts.get("passed", 0), "failed": counts.get("failed", 0) + counts.get("error", 0),
            "skipped": counts.get("skipped", 0), "first_failure": failed[:1], "note": note,
            "seconds": round(time.monotonic() - started, 1)}


def _read(command: Sequence[str], seconds: float) -> dict[str, Any]:
    """What a process printed last, a line of JSON; with `error` if it failed, or would take longer than `seconds`."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1), env=_environment())
        out, lines = run.stdout, [line for line in run.stderr.splitlines() if line.strip()]
        error = "" if run.returncode == 0 else (lines[-1] if lines else f"status {run.returncode}")[:300]
    except subprocess.TimeoutExpired as expired:
        out, error = (expired.stdout or b"").decode(errors="replace"), f"not done after {seconds:.0f} s"
    last = next((line for line in reversed(out.splitlines()) if line.startswith("{") and line.endswith("}")), "{}")
    answer: dict[str, Any] = json.loads(last)
    return {**answer, "error": error} if error else answer


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))}


def _lines(results: Results) -> Iterator[str]:
    device, bandwidth = results.device, results.bandwidth_gb_s
    if device.get("name"):
        yield (f"{device['name']} ({device['type']}), driver {device['driver']} {device['driver_version']}, Vulkan "
               f"{device['api']}, {device['free_bytes'] / GB:.2f} of {device['memory'] / GB:.2f} GB free")
        yield f"reads {bandwidth} GB/s"
    if results.parity:
        parity = results.parity
        yield f"parity: {parity.get('error')}" if "error" in parity else (
            f"parity: {parity['tokens']} log-probabilities within {parity['largest_difference']}, "
            f"{parity['same_answers']} of {parity['answers']} greedy answers the same")
    if results.ops:
        ops = results.ops
        yield f"ops: {ops['passed']} passed, {ops['failed']} failed, {ops['skipped']} skipped {ops['note']}".rstrip()
        yield from ops["first_failure"]
    if results.speed:
        yield ""
        yield "| model | engine | depth | decode, tokens/s | of the bandwidth | prefill, tokens/s |"
        yield "|---|---|---|---|---|---|"
    for row in results.speed:
        for at in row.get("depths", ()):
            decode = at.get("decode")
            split = row.get("split", "")  # whose bytes are not all read by the device
            share = (f"{decode * row['file_bytes'] / GB / bandwidth:.0%}"
                     if decode and bandwidth and row["engine"] != "transformers" and not split else NOT_MEASURED)
            yield (f"| {row['model']}{split} | {row['engine']} | {at['depth']} | {decode or NOT_MEASURED} | {share} | "
                   f"{at.get('prefill') or NOT_MEASURED} |")
        if "error" in row:
            yield f"| {row['model']} | {row['engine']} | | {row['error']} | | |"
    if results.left_out:
        yield ""
        yield "left out:"
        yield from (f"- {line}" for line in results.left_out)


def _say(text: str) -> None:
    sys.stderr.write(f"== {text}\n")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in MODELS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(MODELS)}")
    return names


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="vulkan", help="vulkan, vulkan:1, vulkan:PART-OF-A-NAME (default: vulkan)")
    parser.add_argument("--memory", default="4GB", help="limit of the device's memory (default: 4GB)")
    parser.add_argument("--seconds", type=float, default=570, help="it ends by itself after these (default: 570)")
    parser.add_argument("--models", type=_names, default=tuple(MODELS), help=f"of {', '.join(MODELS)} (default: all)")
    parser.add_argument("--depths", type=_numbers, default=(32, 4096, 16384), help="default: 32,4096,16384")
    parser.add_argument("--folder", type=Path, default=Path("gpu-models"), help="for the models (default: gpu-models)")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="where all figures go (default: gpu.json)")
    parser.add_argument("--llama-bench", default=shutil.which("llama-bench"),
                        help="llama.cpp's program (default: the one on PATH)")
    parser.add_argument("--llama-bench-2", help="another build of it, CUDA beside Vulkan")
    parser.add_argument("--transformers", action="store_true", help="measure transformers on CUDA, too")
    parser.add_argument("--small", action="store_true", help="a minute's worth, for a software device")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
