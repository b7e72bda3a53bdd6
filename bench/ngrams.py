"""Simulates drafts on real answers: how many are accepted, and how much faster that is with given times of steps.

The table is made of the first answers of a task, the drafts are checked against others: no model runs. A step drafts
while the product of the probabilities is at least --threshold; its time is that of a 1.5B on two Zen 4 cores.

    python bench/ngrams.py ../shared/data snips_calls sgd_calls pii_presidio star_calls
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from brise import settings
from brise.checkpoint.open import open_checkpoint
from brise.data.count_ngrams import CountedRow, NgramOptions, count_ngrams
from brise.data.example import EncodedRow
from brise.data.ngrams import NgramTable, table_in
from brise.data.parse_row import RowRules, parse_row
from brise.data.render import rows_of
from brise.engine.drafts import DraftSource, DraftState
from brise.engine.lookup import PromptLookup
from brise.hub.locate import find_model
from brise.text.load import Tokens, tokens_for

# Milliseconds of a step by its tokens: issue 20, Qwen2.5-1.5B Q4_K_M, two Zen 4 cores, 2026-11-29.
STEP_MS: Mapping[int, float] = MappingProxyType({1: 31, 2: 38, 3: 47, 4: 42, 5: 49, 6: 56, 7: 57, 8: 57})
MORE_MS = 4.0  # of each token beyond 8
SOURCES = ("ngrams", "prompt", "both")


@dataclass
class Simulated:
    """Totals over all answers, whose first token comes from the prompt's step. Times are milliseconds."""

    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    ms: float = 0.0

    def add(self, accepted: int, drafted: int, *, ends: bool) -> None:
        """A step that drafted so many tokens; with the last one of the answer accepted, no other follows."""
        self.tokens += accepted + (0 if ends else 1)
        self.steps += 1
        self.drafted += drafted
        self.accepted += accepted
        self.ms += step_ms(1 + drafted)

    @property
    def gain(self) -> float:
        """Tokens a second against one token a step."""
        return self.tokens * step_ms(1) / self.ms if self.ms else 1.0

    def __str__(self) -> str:
        return (f"accepted {self.accepted / max(self.drafted, 1):.1%} of {self.drafted}, "
                f"{self.tokens / max(self.steps, 1):.2f} tokens a step, {self.gain:.2f} times as fast")


def step_ms(tokens: int) -> float:
    """The time of a step."""
    most = max(STEP_MS)
    return STEP_MS[tokens] if tokens <= most else STEP_MS[most] + MORE_MS * (tokens - most)


def simulate(sources: Sequence[DraftSource], rows: Sequence[EncodedRow], *, threshold: float = 0.7,
             most: int = 15) -> Simulated:
    """Drafts the first answer of each row; of several sources that with the most expected tokens."""
    total = Simulated()
    for row in rows:
        first = int(np.flatnonzero(row.is_target)[0])
        tokens = row.tokens.tolist()
        states = [source.start(tokens[:first]) for source in sources]
        at = first
        accepted, draft = 0, list[int]()
        while at < len(tokens):
            for state in states:
                state.extend(tokens[at - accepted:at + 1])
            at += 1
            if at == len(tokens):
                break
            draft = best(states, min(most, len(tokens) - at), threshold)
            accepted = equal(draft, tokens[at:])
            at += accepted
            total.add(accepted, len(draft), ends=at == len(tokens))
    return total


def best(states: Sequence[DraftState], most: int, threshold: float) -> list[int]:
    """The draft with the most expected tokens over the threshold."""
    chosen, promise = list[int](), 0.0
    for state in states:
        tokens, probabilities = state.propose(most)
        chances = np.cumprod(probabilities) if len(probabilities) else np.zeros(0)
        count = int((chances >= threshold).sum())
        if chances[:count].sum() > promise:
            chosen, promise = list(tokens[:count]), float(chances[:count].sum())
    return chosen


def equal(draft: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens of the draft come."""
    return next((index for index, (one, other) in enumerate(zip(draft, tokens, strict=False)) if one != other),
                min(len(draft), len(tokens)))


def counted(path: Path, tokens: Tokens, number: int) -> Iterator[CountedRow]:
    """The first rows of a file, in tokens."""
    with path.open(encoding="utf-8") as file:
        for at, line in zip(range(number), file, strict=False):
            example = parse_row(json.loads(line), f"{path}:{at}", path.parent, RowRules())
            yield from (CountedRow(row, example.conversation) for row in rows_of(example, tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--model", default="smollm2", help="whose tokens")
    parser.add_argument("--rows", type=int, default=300, help="answers in the table")
    parser.add_argument("--tested", type=int, default=200, help="other answers")
    parser.add_argument("--least", type=int, default=2)
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--nbytes", type=int, default=NgramOptions().nbytes)
    parser.add_argument("--threshold", type=float, default=0.7)
    args = parser.parse_args()
    tokens = tokens_for(open_checkpoint(find_model(args.model, settings.read()).path))
    for task in args.tasks:
        rows = list(counted(args.data / task / "train.jsonl", tokens, args.rows + args.tested))
        random.Random(0).shuffle(rows)
        table = table_in(memoryview(count_ngrams(rows[:args.rows], tokens.tokenizer, "rows", NgramOptions(
            args.nbytes, args.least), order=args.order)))
        tested = [each.row for each in rows[args.rows:]]
        print(f"{task}: {len(table)} n-grams, {table.nbytes} bytes")
        for name, sources in zip(SOURCES, _sources(table), strict=True):
            print(f"  {name:8} {simulate(sources, tested, threshold=args.threshold)}")


def _sources(table: NgramTable) -> Sequence[Sequence[DraftSource]]:
    lookup = PromptLookup()
    return (table,), (lookup,), (table, lookup)


if __name__ == "__main__":
    main()
