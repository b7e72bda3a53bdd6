"""Packing rows into microbatches without padding; a prefix that several rows share is computed once.

The rows of a step are sorted by their first tokens, so that rows with a common prefix stand together, and split where
a microbatch would exceed `max_tokens`. Rows that agree in their first MIN_SHARED tokens form a group: the prefix that
all of them share and none of them learns becomes one sequence that each row continues (`parents` in models/batch.py).
The loss and its gradient equal those of the rows one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from brise.data.example import EncodedRow, Teacher
from brise.errors import UnsupportedError
from brise.models.batch import Batch
from brise.models.weights import Array

# A microbatch is padded to a multiple of this with unlearned tokens in a sequence of their own: torch makes and keeps
# a matrix product's kernel for each number of rows that it meets.
TILE = 64
MIN_SHARED = 16  # a shorter common prefix saves less than its own sequence costs


@dataclass(frozen=True)
class Pack:
    """A microbatch. The token `targets[i]` comes after the token `batch.rows[i]`; `owners[i]` is its row in `rows`."""

    batch: Batch
    targets: Array  # (R,) int32
    owners: Array  # (R,) int32
    rows: tuple[EncodedRow, ...]

    @property
    def num_tokens(self) -> int:
        """The number of computed tokens."""
        return len(self.batch.tokens)

    @property
    def teacher(self) -> Teacher | None:
        """The teacher's predictions for all targets, if every row has them."""
        given = [row.teacher for row in self.rows]
        if any(teacher is None for teacher in given):
            return None
        return Teacher(np.concatenate([teacher.tokens for teacher in given if teacher is not None]),
                       np.concatenate([teacher.logprobs for teacher in given if teacher is not None]))


# Of a row: features (N, D) of its images, and (T,) which of them each token takes, or -1.
FeaturesOf = Callable[[EncodedRow], tuple[Array, Array]]


def packs(rows: Sequence[EncodedRow], max_tokens: int, *, shares: bool = True,
          features_of: FeaturesOf | None = None) -> Iterator[Pack]:
    """All rows in microbatches of at most `max_tokens` computed tokens each; without `shares`, nothing is shared."""
    ordered = sorted(rows, key=lambda row: (row.tokens[:MIN_SHARED].tolist(), len(row.tokens)))
    group: list[EncodedRow] = []
    for row in ordered:
        if len(row.tokens) > max_tokens:
            raise UnsupportedError(f"{row.place} has {len(row.tokens)} tokens, a microbatch holds {max_tokens}",
                                   hint="allow more tokens a microbatch, or leave long examples out")
        if group and num_computed([*group, row], shares=shares) > max_tokens:
            yield pack(group, max_tokens, shares=shares, features_of=features_of)
            group = []
        group.append(row)
    if group:
        yield pack(group, max_tokens, shares=shares, features_of=features_of)


def num_computed(rows: Sequence[EncodedRow], *, shares: bool = True) -> int:
    """The number of tokens that a microbatch of these rows computes."""
    return sum(length + sum(len(row.tokens) - length for row in group)
               for group, length in _groups(rows, shares=shares))


def pack(rows: Sequence[EncodedRow], max_tokens: int | None = None, *, shares: bool = True,
         features_of: FeaturesOf | None = None) -> Pack:
    """One microbatch of all these rows, in order except that groups stay together.

    With `max_tokens` it is padded to whole tiles, or to that many tokens.
    """
    tokens: list[Array] = []
    positions: list[Array] = []
    places: list[Array] = []  # of targets: the token before each
    owners: list[int] = []
    parents: list[int] = []
    images: list[tuple[Array, Array]] = []
    ordered: list[EncodedRow] = []
    total = 0

    def append(row: EncodedRow, first: int, last: int, parent: int) -> None:
        nonlocal total
        tokens.append(row.tokens[first:last])
        positions.append(np.arange(first, last))
        parents.append(parent)
        if features_of is not None:
            features, indices = features_of(row)  # empty for padding, which has no images
            images.append((features, indices[first:last]))
        total += last - first

    for group, length in _groups(rows, shares=shares):
        parent, start = -1, total
        if length:
            parent = len(parents)
            append(group[0], 0, length, -1)
        for row in group:
            own = total - length  # where its token 0 would be if the prefix stood before its own tokens
            append(row, length, len(row.tokens), parent)
            before = np.flatnonzero(row.is_target) - 1
            places.append(np.where(before < length, start + before, own + before))
            owners.extend([len(ordered)] * len(before))
            ordered.append(row)
    padding = 0 if max_tokens is None else min(-total % TILE, max_tokens - total)
    if padding:
        append(EncodedRow(np.zeros(padding, np.int32), np.zeros(padding, bool), ""), 0, padding, -1)
    starts = np.concatenate([[0], np.cumsum([len(part) for part in tokens])])
    features, feature_rows = _joined(images)
    batch = Batch(np.concatenate(tokens).astype(np.int32), np.concatenate(positions).astype(np.int32),
                  starts.astype(np.int32), np.concatenate(places).astype(np.int64), features=features,
                  feature_rows=feature_rows, parents=np.array(parents, np.int32) if max(parents) >= 0 else None)
    targets = np.concatenate([row.tokens[row.is_target] for row in ordered]).astype(np.int64)
    return Pack(batch, targets, np.array(owners, np.int32), tuple(ordered))


def _joined(images: Sequence[tuple[Array, Array]]) -> tuple[Array | None, Array | None]:
    """The features of all sequences, concatenated, and the index of each token's feature."""
    if not any(len(features) for features, _ in images):
        return None, None
    offsets = np.concatenate([[0], np.cumsum([len(features) for features, _ in images])])
    rows = [np.where(indices >= 0, indices + offset, -1) for (_, indices), offset in zip(images, offsets, strict=False)]
    return np.concatenate([features for features, _ in images]), np.concatenate(rows).astype(np.int32)


def _groups(rows: Sequence[EncodedRow], *, shares: bool) -> Iterator[tuple[list[EncodedRow], int]]:
    """Groups of rows with a common prefix, and its length; 0 for a row by itself."""
    if not shares:
        yield from (([row], 0) for row in rows)
        return
    by_start: dict[bytes, list[EncodedRow]] = {}
    for row in rows:
        by_start.setdefault(row.tokens[:MIN_SHARED].tobytes(), []).append(row)
    for group in by_start.values():
        length = _common(group)
        if len(group) > 1 and length >= MIN_SHARED:
            yield group, length
        else:
            yield from (([row], 0) for row in group)


def _common(group: Sequence[EncodedRow]) -> int:
    """The length of the common prefix without learned tokens, image tokens, and the last token of any row."""
    first = group[0]
    length = min(min(len(row.tokens) - 1, _learned(row)) for row in group)
    if any(row.images for row in group):
        return 0
    for row in group[1:]:
        (differs,) = np.nonzero(row.tokens[:length] != first.tokens[:length])
        length = int(differs[0]) if len(differs) else length
    return length


def _learned(row: EncodedRow) -> int:
    """The index of the first learned token."""
    return int(row.is_target.argmax()) if row.is_target.any() else len(row.tokens)
