"""brise as a measured process, for compare.py: the engine with its scheduler and its sampling."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from worker import Times, serve

STARTED = time.perf_counter()
from brise import __version__  # noqa: E402  (its import is a part of the start: the clock starts before it)
from brise.engine.model import LoadedModel, load  # noqa: E402
from brise.evals.speed import BenchEngine, Rate  # noqa: E402

IMPORT_S = time.perf_counter() - STARTED


class Measured:
    """A model with an engine for each number of sequences; engines are made before a clock starts."""

    def __init__(self, model: LoadedModel, context: int) -> None:
        self.model, self.context = model, context
        self.subjects: dict[int, BenchEngine] = {}

    def prefill(self, length: int) -> Times:
        return _times(self._subject(1).prefill(length))

    def decode(self, sequences: int, depth: int, steps: int) -> Times:
        return _times(self._subject(sequences).decode(sequences, depth, steps))

    def _subject(self, sequences: int) -> BenchEngine:
        if sequences not in self.subjects:
            self.subjects[sequences] = BenchEngine(self.model, sequences, self.context)
            self.subjects[sequences].prefill(64)
        return self.subjects[sequences]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("path", type=Path)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--context", type=int, default=1024, help="tokens a sequence")
    given = arguments.parse_args()
    model = load(given.path, threads=given.threads)
    serve(Measured(model, given.context), {"version": __version__, "import_s": IMPORT_S})
    return 0


def _times(rate: Rate) -> Times:
    return {"tokens": rate.tokens, "seconds": rate.seconds}


if __name__ == "__main__":
    raise SystemExit(main())
