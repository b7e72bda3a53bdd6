"""Peak of memory and seconds of loading a model, as it is or in fewer bits, each in a process of its own.

    python bench/loading.py MODEL[:MIX] ...        MIX as `brise quantize` has them: Q4_0, Q4_K_M, ...
    python bench/loading.py --packed FOLDER MODEL[:MIX] ...     the packed weights are kept there, and mapped later

Prints the peak of resident memory, anonymous and of the files, over that of the process before; the size of what was
placed; and the seconds, best of all rounds. The files should be in the page cache: the first round reads them. With
--packed a round before them packs and writes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping

LOAD = """
import json, sys, time
from brise.engine import model
from brise.models.weights import place
from brise.backends.native.backend import NativeBackend  # its libraries are no part of a model

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

from pathlib import Path
from brise.hub.packed import PackedFolder

mix = sys.argv[2] or None
packed = PackedFolder(Path(sys.argv[3]), least_bytes=0) if sys.argv[3] else None
model.tokens_for(model.open_checkpoint(sys.argv[1]))  # nor is the tokenizer
before, start = status("VmRSS"), time.perf_counter()
loaded = model.load(sys.argv[1], weights=mix, packed=packed)
seconds, peak, placed = time.perf_counter() - start, status("VmHWM") - before, 0
if loaded.keeper is not None:
    loaded.keeper.finish()

def add(name, weight):
    global placed
    placed += loaded.backend.nbytes(weight).host
    return weight

place(loaded.weights, add)
print(json.dumps({"peak": peak, "placed": placed, "seconds": seconds}))
"""


def main() -> None:
    """Prints a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL[:MIX]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--packed", metavar="FOLDER", default="", help="keep packed weights in this folder")
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    arguments = parser.parse_args()
    found = {name: load(*name.partition(":")[::2], arguments.packed, arguments.rounds) for name in arguments.models}
    if arguments.json:
        print(json.dumps(found))
        return
    print("peak MB  placed MB  seconds  model (MB = 10^6 bytes)")
    for name, numbers in found.items():
        print(f"{numbers['peak'] / 1e6:7.0f}  {numbers['placed'] / 1e6:9.0f}  {numbers['seconds']:7.2f}  {name}")


def load(path: str, mix: str, packed: str, num_rounds: int) -> Mapping[str, float]:
    rounds = []
    for _ in range(num_rounds + bool(packed)):
        words = [sys.executable, "-c", LOAD, path, mix, packed]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        rounds.append(json.loads(done.stdout))
    rounds = rounds[bool(packed):]
    return {key: min(numbers[key] for numbers in rounds) if key == "seconds" else max(
        numbers[key] for numbers in rounds) for key in rounds[0]}


if __name__ == "__main__":
    main()
