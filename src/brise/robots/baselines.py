"""Policies of the gate course that are no language models: TF-IDF with a linear model, and the nearest neighbour.

They learn from the rows that a language model learns from. One that does not beat them is not worth its memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from brise.errors import EvidenceError
from brise.evals.baseline import linear_model, most_similar, vectorized
from brise.robots.gate_course import MOVES, SPACE
from brise.robots.quadrotor import Floats

Texts = Sequence[str]
MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class RowsPolicy:
    """A policy that learns from a file that `brise act rows` wrote."""

    kind: Literal["linear", "nearest"]
    rows: Path


def learned(options: RowsPolicy) -> Callable[[Texts], Floats]:
    """What gives the commands (N, D) for N observations as text; EvidenceError for a file without rows of the drone."""
    texts, commands_ND = _read(options.rows)
    union, known = vectorized(texts)
    if options.kind == "nearest":
        return lambda asked: commands_ND[list(most_similar(known, union.transform(asked)))]
    bins_ND = np.array([SPACE.bins_of(command[None])[0] for command in commands_ND])
    models = {at: linear_model(known, bins_ND[:, at].tolist()) for at in MOVES}  # what moves nothing needs no model

    def linear(asked: Texts) -> Floats:
        features = union.transform(asked)
        bins = np.zeros((len(asked), len(SPACE.values)))
        for at, predict in models.items():
            bins[:, at] = predict(features)
        return SPACE.centers(bins)
    return linear


def text_of(messages: Sequence[Any]) -> str:
    """What of an observation differs from one to the next: what the user says."""
    return "\n".join(str(message["content"]) for message in messages if message["role"] == "user")


def _read(path: Path) -> tuple[list[str], Floats]:
    texts, commands = [], []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in zip(range(MAX_ROWS), file, strict=False):
                row = json.loads(line)
                texts.append(text_of(row["messages"]))
                commands.append(np.array(row["actions"][0], np.float64))
                if commands[-1].shape != (len(SPACE.values),):
                    raise EvidenceError(f"{path}:{number + 1} has {len(commands[-1])} values, the drone has "
                                        f"{len(SPACE.values)}")
    except OSError as error:
        raise EvidenceError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EvidenceError(f"{path}:{len(texts) + 1} is no row of the drone: {error!r}",
                            hint="`brise act rows` writes them") from error
    if not texts:
        raise EvidenceError(f"{path} has no rows")
    return texts, np.array(commands)
