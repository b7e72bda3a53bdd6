"""Logs with both answers whose truth was planted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LABELS = ("yes", "no", "maybe")
Row = dict[str, Any]


def rows(number: int, *, better: float = 0.03, worse: float = 0.03, seed: int = 1) -> list[Row]:
    """A classification: the large model is right but where only the small one is, and the other way round."""
    draws = random.Random(seed)
    out = []
    for at in range(number):
        right, u = draws.choice(LABELS), draws.random()
        wrong = LABELS[(LABELS.index(right) + 1) % 3]
        small, large = (right, wrong) if u < better else (wrong, right) if u < better + worse else (right, right)
        out.append({
            "id": f"r{at}", "conversation": f"c{at}", "at": 1_700_000_000 + 60 * at, "prompt": f"ticket {at}",
            "small": {"content": small, "seconds": 0.1 + draws.random() / 10, "model": "mini"},
            "large": {"content": large, "seconds": 0.5 + draws.random(), "model": "big", "fingerprint": "fp1"},
            "reference": right, "labels": {"route": "ab"[at % 2]}, "meta": {"task": "classification"}})
    return out


def changed(found: list[Row], change: Callable[[int, Row], Mapping[str, Any]]) -> list[Row]:
    """The rows, each with what `change` says of it; None takes a field out."""
    return [{name: value for name, value in {**row, **change(at, row)}.items() if value is not None}
            for at, row in enumerate(found)]


def write(path: Path, found: list[Row]) -> Path:
    """As JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path
