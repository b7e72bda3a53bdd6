"""Makes the files of tests/stored/v0_1, as version 0.1 wrote them. It documents how; it runs at commit 2e0fa6d only.

    git worktree add /tmp/brise-0.1 2e0fa6d     (and copy into it tests/stored/*.py, tests/test_stored_files.py and
    cd /tmp/brise-0.1                            tests/models/test_golden_bits.py as they were in the first commit)
    USER=eva PYTHONPATH=src:. python -m tests.stored.make_v0_1 models tune traffic files goldens expected

Each part writes into /tmp/v0_1, whose name stands in some files, through the command line where there is a command;
what is there goes to tests/stored/v0_1. Captured traffic has random ids, keys and times of its own, so a second run
makes other files. `expected` writes what the commands of tests/test_stored_files.py say of them. The keys are of this
store alone and protect nothing.

What the traffic is: `brise serve` in front of a fake hosted model that speaks every dialect (task `wind`, with a
shadow, a second question, an outage, a switch with audits, labels of people and of a judge), and a task `tickets`
whose truth is planted, large enough for a certificate and for a rule.
"""

# ruff: noqa: I001 -- it imports modules as they lay at 2e0fa6d
from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from typing import Any

from tests import test_stored_files as stored
from tests.backends import open_backend
from tests.checkpoint import make_gguf
from tests.evidence import logs
from tests.models import test_golden_bits as bits
from tests.stored.machine import numpy_kind
from tests.stored.make_v0_1_traffic import HOME, OUT, brise, captured, environment

RIGHTS = """[[allow]]
provider = "hosted-1-2026-01-01"
basis = "contract of 2026, 4.2"
date = 2026-03-01
scope = ["training", "evaluation"]

[[allow]]
provider = "anthropic"
basis = "a letter"
date = 2026-03-01
scope = "training"
expires = 2126-03-01
"""


# Models


def models() -> None:
    """A tiny random model as GGUF and, another one, as a Hugging Face folder, both in the model store."""
    shutil.rmtree(OUT, ignore_errors=True)
    work = OUT / "work"
    work.mkdir(parents=True)
    for name, layers, format in (("tiny", 2, "Q8_0"), ("tiny-hf", 1, "F32")):
        shape = make_gguf.Sizes(width=32, head_dim=32, ffn_width=32, num_layers=layers, num_heads=2, num_kv_heads=1)
        make_gguf.sizes = lambda family, format="F32", shape=shape: shape  # type: ignore[assignment]
        make_gguf.write_tiny(work / f"{name}.gguf", "llama", format=format, seed=layers)
    brise("export", "work/tiny-hf.gguf", "work/tiny-hf", "--dtype", "bf16")
    brise("pull", "./work/tiny.gguf", "--name", "tiny")
    brise("pull", "./work/tiny-hf", "--name", "tiny-hf")
    shutil.rmtree(work)
    for folder in ("partial", "locks"):
        shutil.rmtree(HOME / folder, ignore_errors=True)


# Training


def tune() -> None:
    """Adapters of both kinds, and a run that a SIGKILL behind a checkpoint cut off."""
    for name in ("data.jsonl", "lora", "dora", "run"):
        path = OUT / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (OUT / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (
        {"prompt": f"ticket {number} {'the wind ' * (number % 4)}", "completion": "yes" if number % 2 else "no",
         "meta": {"task": "classification"}} for number in range(40))))
    for method in ("lora", "dora"):
        brise("tune", *stored.TUNE, "--steps", 30, "--out", "whole", "--method", method)
        shutil.copytree(OUT / "whole" / "adapter", OUT / method)
        shutil.rmtree(OUT / "whole")
    brise("tune", *stored.TUNE, *stored.RUN, "--out", "whole")
    whole = stored.digest(OUT / "whole" / "adapter" / "adapter_model.safetensors")
    (OUT / "run.json").write_text(json.dumps({"adapter_model.safetensors": whole}) + "\n")
    shutil.rmtree(OUT / "whole")
    words = [sys.executable, "-m", "brise", "tune", *stored.TUNE, *stored.RUN, "--out", "run", "--json"]
    with subprocess.Popen(words, cwd=OUT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if json.loads(line).get("step") == 25)
        process.send_signal(signal.SIGINT)
        print(process.stdout.read().splitlines()[-1])
    (OUT / "run" / ".lock").unlink(missing_ok=True)


# Files beside the store


def files() -> None:
    """A log of pairs and people's verdicts on it, answers of an evaluation, an importance matrix, rights."""
    for name in ("pairs.jsonl", "verdicts.jsonl", "answers.jsonl", "importance.gguf", "rights.toml", "work"):
        path = OUT / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    (OUT / "work").mkdir()
    (OUT / "rights.toml").write_text(RIGHTS)
    pairs = logs.changed(logs.rows(40, better=0.2, worse=0.1, seed=8), lambda at, row: {"reference": None})
    logs.write(OUT / "pairs.jsonl", pairs)
    command = [sys.executable, "-m", "brise", "label", "--pairs", "pairs.jsonl", "--judgements", "verdicts.jsonl",
               "--who", "ann"]
    subprocess.run(command, input="a\nb\nboth\na\nneither\n" * 8, text=True, check=True, env=environment(), cwd=OUT)
    brise(*stored.EVAL.split(), "--out", "answers.jsonl")
    (OUT / "work" / "text.txt").write_text("the user is in the other land, and the user is here. " * 20)
    brise("quantize", "tiny", "work/q.gguf", "--to", "Q4_0", "--requantize", "--calibration", "work/text.txt",
          "--save-importance", "importance.gguf")
    shutil.rmtree(OUT / "work")


def goldens() -> None:
    """The bits of all logits; the wheel must hold the kernels of this processor."""
    found: dict[str, Any] = {"numpy": {"reference": numpy_kind()}}
    for name in ("reference", "native-avx2", "native-scalar"):
        under_test = open_backend(name)
        found[name] = {golden: bits.digests(under_test, golden) for golden in (*bits.NAMES, "vision")}
    (OUT / "golden_logits.json").write_text(json.dumps(found, indent=1) + "\n")


def expected() -> None:
    """What the commands say of all of it, and the digests of what they write."""
    shutil.rmtree(OUT / "expected", ignore_errors=True)
    (OUT / "expected").mkdir()
    for name, words in stored.COMMANDS.items():
        with stored.copied(OUT) as folder:
            _keep(name, stored.said(folder, words))
    with stored.copied(OUT) as folder:
        listed = stored.said(folder, "log list --task wind --limit 100 --json")["out"]
        _keep("log_show", {one["id"]: stored.said(folder, f"log show {one['id']} --json") for one in listed})
    with stored.copied(OUT) as folder:
        stored.said(folder, stored.QUANTIZE)
        for words in stored.EXPORTS.values():
            stored.said(folder, words)
        _keep("digests", {"numpy": numpy_kind(), "tune": json.loads((OUT / "run.json").read_text()), "written": {
            name: stored.digest(folder / name) for name in (stored.QUANTIZED, *stored.EXPORTS)}})
    _keep("tune", stored.tuned(OUT))


def _keep(name: str, value: object) -> None:
    (OUT / "expected" / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    for part in sys.argv[1:]:
        {"models": models, "tune": tune, "traffic": captured, "files": files, "goldens": goldens,
         "expected": expected}[part]()
