"""Which scorer compares the answers of these pairs with their references."""

from __future__ import annotations

from collections.abc import Sequence

from brise.evals import classify, custom, scorers
from brise.evals.scorers import Scorer
from brise.prove.pairs import Pair


def scorer_of(score: str | None, own: str | None, pairs: Sequence[Pair]) -> Scorer | None:
    """The one that was asked for, or the one for these rows; none where no row has a reference."""
    if own is not None:
        return custom.load(own)
    examples = [pair.example(pair.reference) for pair in pairs if pair.reference is not None]
    if not examples and score is None:
        return None
    name = score or scorers.pick(examples)[0]
    return scorers.built_in(classify.labels_of(examples))[name]
