"""Rows of the teacher beside those of the student, which may see another prompt: the same answers, token by token.

A teacher reads a conversation in its own chat format, and with the system prompt that the student is to do without
(system_prompts.py). What both have in common are the answers: they are what the teacher is asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from brise.data.example import EncodedRow
from brise.data.prepare import DataOptions, prepare
from brise.errors import EvidenceError
from brise.text.load import Tokens


def teacher_rows(paths: Sequence[Path], tokens: Tokens, options: DataOptions) -> tuple[EncodedRow, ...]:
    """The rows of the same files as the teacher reads them, nothing absorbed and nothing left out for its length."""
    whole = replace(options, absorb_system=False, max_tokens=None, allow_leakage=True, held_out_share=0.0,
                    held_out_count=None)  # a row that is between the sides for the teacher may not be for the student
    dataset = prepare(paths, tokens, whole)
    return (*dataset.train, *dataset.held_out)


def aligned(students: Sequence[EncodedRow], teachers: Sequence[EncodedRow]) -> list[EncodedRow]:
    """For each row of the student the teacher's row with the same answers; EvidenceError names one that has none."""
    by_place: dict[str, list[EncodedRow]] = {}
    for row in teachers:
        by_place.setdefault(row.place, []).append(row)
    own: dict[str, list[EncodedRow]] = {}
    for row in students:
        own.setdefault(row.place, []).append(row)
    found = []
    for row in students:
        mine, theirs = own[row.place], by_place.get(row.place, [])
        if len(mine) != len(theirs):
            raise EvidenceError(f"{row.place} makes {len(mine)} rows for the student and {len(theirs)} for the teacher",
                                hint="their chat formats differ in what they keep of a conversation; learn from texts")
        other = theirs[next(index for index, candidate in enumerate(mine) if candidate is row)]
        if not np.array_equal(row.tokens[row.is_target], other.tokens[other.is_target]):
            raise EvidenceError(f"{row.place} has other answer tokens for the teacher than for the student",
                                hint="their chat formats end an answer differently; learn from texts")
        found.append(other)
    return found
