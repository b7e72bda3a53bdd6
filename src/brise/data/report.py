"""The report on the data of a run, before it starts: as lines of text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from brise.data.check import Leakage, Repeats
from brise.data.example import EncodedRow
from brise.data.left_out import LeftOut
from brise.data.read_rows import BadRow
from brise.data.rights import Used
from brise.data.system_prompts import PromptSavings

NUM_SHOWN = 20
TOO_LONG = "it has more tokens than a row may have"
BETWEEN = "its conversation is on one side of the split, its question on the other"
BAR = 40  # characters of the longest bar


@dataclass(frozen=True)
class SplitCounts:
    """One side of the split: examples in the files, the rows that they gave, and their tokens."""

    examples: int
    rows: int
    tokens: int
    targets: int

    @classmethod
    def of(cls, examples: int, rows: Sequence[EncodedRow]) -> SplitCounts:
        return cls(examples, len(rows), sum(len(row.tokens) for row in rows), sum(row.num_targets for row in rows))


@dataclass(frozen=True)
class Histogram:
    """Row counts by length: bin i holds rows of edges[i] + 1 to edges[i + 1] tokens."""

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    shortest: int
    median: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Histogram:
        """Two bins an octave, from the shortest row's to the longest's."""
        ordered = sorted(lengths)
        edges = [0, 8]
        while edges[-1] < ordered[-1]:
            edges.append(edges[-1] * 3 // 2 if edges[-1] & (edges[-1] - 1) == 0 else edges[-1] * 4 // 3)
        counts = [sum(low < length <= high for length in ordered) for low, high in pairwise(edges)]
        first = next(index for index, count in enumerate(counts) if count)
        return cls(tuple(edges[first:]), tuple(counts[first:]), ordered[0], ordered[len(ordered) // 2], ordered[-1])

    def lines(self) -> list[str]:
        """A bar for each bin."""
        most, width = max(self.counts), len(str(self.edges[-1]))
        return [f"  {low + 1:>{width}} to {high:<{width}} {count:>8} {'#' * -(-count * BAR // most)}"
                for (low, high), count in zip(pairwise(self.edges), self.counts, strict=True)]


@dataclass(frozen=True)
class DataReport:
    """Everything that the checks found. `bad`, `too_long` and the `between` rows between the sides were left out, and
    so were those of `not_learned`: their answers are not whole.
    """

    files: Mapping[str, int]
    passed_over: tuple[str, ...]
    rows: int
    bad: tuple[BadRow, ...]
    too_long: tuple[BadRow, ...]
    between: int
    train: SplitCounts
    held_out: SplitCounts
    lengths: Histogram
    conversations: int
    largest_conversation: int
    repeats: Repeats
    leakage: Leakage
    rights: tuple[Used, ...] = ()
    saved: PromptSavings | None = None
    not_learned: LeftOut = field(default_factory=LeftOut)

    @property
    def left_out(self) -> LeftOut:
        """All rows that were left out, by reason."""
        counts = LeftOut(row.reason for row in self.bad)
        counts.update(self.not_learned)
        for reason, number in ((TOO_LONG, len(self.too_long)), (BETWEEN, self.between)):
            if number:
                counts[reason] += number
        return counts

    def lines(self) -> list[str]:
        """For a terminal."""
        return [*(f"{path}: {count} rows" for path, count in self.files.items()),
                *([f"not read: {', '.join(self.passed_over)}"] if self.passed_over else []),
                *_left_out("cannot be trained on and are left out", self.bad),
                *_left_out("are too long and are left out", self.too_long),
                *self.left_out.lines(),
                _side("train", self.train), _side("held out", self.held_out),
                f"{self.conversations} conversations, the largest with {self.largest_conversation} rows" + (
                    "; if it is many, name them (--conversation)" if self._has_crowd else ""),
                f"tokens a row: {self.lengths.shortest} to {self.lengths.longest}, median {self.lengths.median}",
                *self.lengths.lines(),
                *_pairs(f"duplicates: {self.repeats.num_same} rows repeat an earlier one", self.repeats.same),
                *_pairs(f"contradictions: {self.repeats.num_contrary} rows answer an earlier row's prompt otherwise",
                        self.repeats.contrary),
                *_pairs(f"near-duplicates: {self.repeats.num_near} rows have nearly an earlier row's prompt",
                        self.repeats.near),
                *self._leakage_lines(),
                *(f"{used.rows} rows of {used.right.provider}: allowed by {used.right.basis} ({used.right.date})"
                  for used in self.rights),
                *self._saved_lines()]

    def to_json(self) -> dict[str, object]:
        """For machines, and for the run's record."""
        repeats, leakage = self.repeats, self.leakage
        return {
            "files": dict(self.files), "passed_over": list(self.passed_over), "rows": self.rows,
            "bad": [{"place": row.place, "reason": row.reason} for row in self.bad],
            "too_long": [{"place": row.place, "reason": row.reason} for row in self.too_long],
            "between_the_sides": self.between, "left_out": self.left_out.to_json(),
            "train": vars(self.train), "held_out": vars(self.held_out),
            "conversations": self.conversations, "largest_conversation": self.largest_conversation,
            "lengths": {"edges": list(self.lengths.edges), "counts": list(self.lengths.counts),
                        "shortest": self.lengths.shortest, "median": self.lengths.median,
                        "longest": self.lengths.longest},
            "duplicates": repeats.num_same, "contradictions": repeats.num_contrary,
            "near_duplicates": repeats.num_near,
            "leakage": {"same_prompt": leakage.same_prompt, "same_conversation": leakage.same_conversation,
                        "near_prompt": leakage.near_prompt},
            "rights": [used.as_json() for used in self.rights],
            "saved": None if self.saved is None else {
                "prompt_tokens_before": self.saved.before, "prompt_tokens_after": self.saved.after,
                "tokens_per_request": self.saved.tokens, "share": self.saved.share, "measured": self.saved.num}}

    @property
    def _has_crowd(self) -> bool:
        """Whether one conversation has so many rows that it may only share a greeting."""
        return self.conversations > 1 and 4 * self.largest_conversation > self.train.examples + self.held_out.examples

    def _leakage_lines(self) -> list[str]:
        if not self.held_out.rows:
            return []
        leakage = self.leakage
        head = (f"leakage: of {self.held_out.examples} rows held out, {leakage.same_prompt} have a prompt and "
                f"{leakage.same_conversation} a conversation that is trained on, {leakage.near_prompt} nearly a prompt")
        return _pairs(head, leakage.places)

    def _saved_lines(self) -> list[str]:
        if self.saved is None:
            return []
        return [f"without the system prompt a request has {self.saved.after:.1f} tokens, not {self.saved.before:.1f}: "
                f"{self.saved.tokens:.1f} fewer, {self.saved.share:.0%} (mean of {self.saved.num} prompts)"]


def _side(name: str, side: SplitCounts) -> str:
    return (f"{name}: {side.examples} examples in {side.rows} rows, {side.tokens} tokens, of which {side.targets} are "
            "learned")


def _left_out(what: str, rows: Sequence[BadRow]) -> list[str]:
    if not rows:
        return []
    more = [f"  and {len(rows) - NUM_SHOWN} more"] if len(rows) > NUM_SHOWN else []
    return [f"{len(rows)} rows {what}:", *(f"  {row.place}: {row.reason}" for row in rows[:NUM_SHOWN]), *more]


def _pairs(head: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [head + (", such as" if pairs else ""), *(f"  {one} and {other}" for one, other in pairs)]
