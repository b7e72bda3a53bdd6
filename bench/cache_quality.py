"""What a smaller key/value cache does to predictions: f16, q8 and q4 against a cache in float32, on real texts.

    python bench/cache_quality.py model.gguf --text README.md docs/*.md
    python bench/cache_quality.py model.gguf --text README.md docs/*.md --backend reference

The same weights run each window of every text once for each format. The reference rounds nothing but the cache; the
native backend rounds activations to int8 as well, and whatever differs a little makes some of them round the other way:
its line for f16 is mostly that noise, and part of the others. KL divergence of the next token's
distribution (nats), how often the best token is the same, and perplexity, over all tokens but a window's first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from brise.engine.model import LoadedModel, load
from brise.models.batch import Batch
from brise.models.ops import CacheFormat, Runner
from brise.models.weights import Array
from brise.quant.quality import Comparison

FORMATS: tuple[CacheFormat, ...] = ("f16", "q8", "q4")
STEP = 256  # tokens of a step: what is seen of them comes out of the cache


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("--text", type=Path, nargs="+", required=True, help="UTF-8 files, read one after the other")
    arguments.add_argument("--window", type=int, default=1024, help="tokens of a piece of text (default: 1024)")
    arguments.add_argument("--windows", type=int, default=8, help="pieces at most (default: 8)")
    arguments.add_argument("--backend", choices=("native", "reference"), default="native")
    given = arguments.parse_args()
    model = load(given.model, backend=given.backend)
    tokens = model.tokenizer.encode("\n\n".join(path.read_text(encoding="utf-8") for path in given.text))
    pieces = [np.array(tokens[first:first + given.window], np.int32)
              for first in range(0, len(tokens) - given.window // 2, given.window)][:given.windows]
    comparisons = {format: Comparison() for format in FORMATS}
    runner = model.backend.runner(model.config, model.weights, STEP)
    for index, piece in enumerate(pieces):
        exact = logits(model, runner, piece, "f32")[:-1]
        for format, comparison in comparisons.items():
            comparison.add_logits(index, exact, logits(model, runner, piece, format)[:-1], piece[1:])
    sys.stdout.write("| cache | bytes a token | mean KL | largest KL | same best token | perplexity | with f32 |\n"
                     "|---|---|---|---|---|---|---|\n")
    for format, comparison in comparisons.items():
        done = comparison.finish()
        size = model.backend.new_cache(model.config, 1, 16, format).nbytes // 16
        sys.stdout.write(f"| {format} | {size} | {done.kl_mean:.2e} ± {done.kl_error or 0:.0e} | {done.kl_max:.2g} | "
                         f"{done.top1_agreement:.2%} | {done.perplexity_quantised:.4f} | "
                         f"{done.perplexity_original:.4f} |\n")
    sys.stdout.write(f"\n{sum(map(len, pieces))} tokens in {len(pieces)} windows\n")
    return 0


def logits(model: LoadedModel, runner: Runner, tokens: Array, format: CacheFormat) -> Array:
    """(T, V) of one sequence that goes through a cache of this format in steps."""
    num_pages = -(-len(tokens) // 16)
    cache = model.backend.new_cache(model.config, num_pages, 16, format)
    table = np.arange(num_pages, dtype=np.int32)[None]
    parts = []
    for first in range(0, len(tokens), STEP):
        positions = np.arange(first, min(first + STEP, len(tokens)), dtype=np.int32)
        rows = np.arange(len(positions), dtype=np.int32)
        batch = Batch(tokens[positions], positions, np.array([0, len(rows)], np.int32), rows, table, positions)
        parts.append(np.array(runner.logits(batch, cache)))
    return np.concatenate(parts)


if __name__ == "__main__":
    sys.exit(main())
