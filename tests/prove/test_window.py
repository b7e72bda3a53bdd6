"""Which pairs count: after the last change, of conversations that are over, in the order of time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.errors import EvidenceError
from brise.evals.example import EvalAnswer
from brise.prove.pairs import ModelAnswer, Pair, choose, settled


def pairs(contexts: str, models: str | None = None) -> list[Pair]:
    """One a second, its context and its large model named by a letter each."""
    names = models or "m" * len(contexts)
    return [Pair(f"p{at}", f"log:{at}", f"u{at}", ModelAnswer(EvalAnswer("a")), ModelAnswer(EvalAnswer("a"), model),
                 at_s=float(at),
                 context=context) for at, (context, model) in enumerate(zip(contexts, names, strict=True))]


@pytest.mark.parametrize(("contexts", "kept"), [
    ("aaaa", 4), ("aabb", 2), ("abab", 4), ("aabab", 5), ("aabcbc", 4), ("abc", 1), ("aaab", 1)])
def test_only_pairs_after_the_last_change_count(contexts: str, kept: int) -> None:
    assert len(choose(pairs(contexts)).pairs) == kept
    assert len(choose(pairs(contexts), any_context=True).pairs) == len(contexts)
    assert len(choose(pairs("x" * len(contexts), contexts), any_context=True).pairs) == kept, "of the model, too"


@given(st.text("abcd", min_size=1, max_size=30))
def test_what_is_kept_shares_no_context_with_what_is_left_out(contexts: str) -> None:
    kept = choose(pairs(contexts)).pairs
    before = contexts[:len(contexts) - len(kept)]
    assert kept and not set(before) & {pair.context for pair in kept}


def test_pairs_are_put_in_the_order_of_time_and_all_or_none_have_one() -> None:
    some = pairs("aaaa")
    assert [pair.id for pair in choose(some[::-1]).pairs] == ["p0", "p1", "p2", "p3"]
    with pytest.raises(EvidenceError, match="3 of 4 pairs say when they were asked; log:2 does not"):
        choose([replace(pair, at_s=None) if pair.id == "p2" else pair for pair in some])
    with pytest.raises(EvidenceError, match="log:0 has no time"):
        choose([replace(pair, at_s=None) for pair in some], since_s=1.0)


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0, 100)), max_size=30), st.floats(0, 150), st.floats(0, 60))
def test_a_later_look_never_changes_what_an_earlier_one_saw(rows: list[tuple[str, float]], look: float,
                                                            later: float) -> None:
    told = [Pair(f"p{at}", "", cluster, ModelAnswer(EvalAnswer("")), ModelAnswer(EvalAnswer("")), at_s=time)
            for at, (cluster, time) in enumerate(rows)]
    first = settled([pair for pair in told if (pair.at_s or 0) < look], 10.0, look)
    second = settled([pair for pair in told if (pair.at_s or 0) < look + later], 10.0, look + later)
    units = {pair.cluster for pair in first}
    assert [pair for pair in second if pair.cluster in units] == list(first)
