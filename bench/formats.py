"""Speed of one linear in each weight format, in turns: a token (bound: memory) and a prompt (bound: int8 products).

    python bench/formats.py --formats Q4_0 IQ4_NL IQ4_XS MXFP4 --threads 2

A matrix of random blocks is larger than the caches. Every round runs each format once, in another order, so that what
else the machine does meets all of them. Bytes are those of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median

import numpy as np

from brise.backends.native.backend import NativeBackend
from brise.models.weights import Placed, Quant
from brise.quant.formats import FORMATS, QUANTISED
from brise.quant.rows import quantize

PIECE = 256  # rows that are drawn once and repeated: the kernels do not look at numbers
Runs = Mapping[str, Sequence[float]]  # seconds of each round, for each format


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--formats", nargs="+", choices=QUANTISED, default=["Q4_0", "IQ4_NL", "IQ4_XS", "MXFP4"])
    arguments.add_argument("--isa", choices=NativeBackend.available_isas())
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=25)
    arguments.add_argument("--rows", type=int, default=16384)
    arguments.add_argument("--cols", type=int, default=8192)
    arguments.add_argument("--prompt", type=int, default=48, help="tokens at once")
    arguments.add_argument("--json", action="store_true", help="print a JSON object: seconds of every run")
    options = arguments.parse_args()
    backend = NativeBackend(options.threads, options.isa)
    weights = {format: placed(backend, format, options.rows, options.cols) for format in options.formats}
    token, prompt = (timed(backend, weights, tokens, options.rounds) for tokens in (1, options.prompt))
    if options.json:
        sys.stdout.write(json.dumps({"token": token, "prompt": prompt}) + "\n")
        return 0
    sys.stdout.write(f"{backend.isa}, {options.threads} threads, {options.rows} x {options.cols}: median (best), and "
                     f"as a share of {options.formats[0]}\nformat    GB/s, 1 token                  10^9 products/s, "
                     f"{options.prompt} tokens\n")
    nbytes = {format: options.rows * FORMATS[format].row_bytes(options.cols) for format in options.formats}
    products = dict.fromkeys(options.formats, options.rows * options.cols * options.prompt)
    for format in options.formats:
        sys.stdout.write(f"{format:8}  {cell(format, nbytes, token)}   {cell(format, products, prompt)}\n")
    return 0


def placed(backend: NativeBackend, format: str, rows: int, cols: int) -> Placed:
    """A placed matrix of normal numbers."""
    piece = quantize(format, np.random.default_rng(0).normal(0, 0.02, (PIECE, cols)).astype(np.float32))
    weight = backend.place(format, Quant(format, (rows, cols), np.resize(piece, (rows, piece.shape[1]))))
    assert isinstance(weight, Placed)
    return weight


def timed(backend: NativeBackend, weights: Mapping[str, Placed], num_tokens: int, num_rounds: int) -> Runs:
    """Seconds of each weight's linear. The first round is left out."""
    ops, rng = backend.ops(), np.random.default_rng(1)
    seconds: dict[str, list[float]] = {format: [] for format in weights}
    for _ in range(num_rounds + 1):
        for format in rng.permutation(list(weights)):
            x = rng.normal(size=(num_tokens, weights[format].shape[1])).astype(np.float32)
            start = time.perf_counter()
            ops.linear(x, weights[format])
            seconds[format].append(time.perf_counter() - start)
    return {format: of[1:] for format, of in seconds.items()}


def cell(format: str, work: Mapping[str, int], runs: Runs) -> str:
    """10^9 of `work` a second: median, best, and both as shares of the first format's."""
    first = next(iter(work))
    rates = [[work[one] / by(runs[one]) / 1e9 for by in (median, min)] for one in (format, first)]
    (usual, best), (usual_first, best_first) = rates
    return f"{usual:6.1f} ({best:6.1f})  {usual / usual_first:4.2f} ({best / best_first:4.2f})"


if __name__ == "__main__":
    sys.exit(main())
