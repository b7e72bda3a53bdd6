"""Near-duplicates: every planted one is found, none is found among texts that differ, and the work stays linear."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.data.check import SIMILARITY, near_duplicates
from tests.profiles import examples

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def sentences(count: int, num_words: int, seed: int = 0) -> list[str]:
    choice = random.Random(seed)
    words = ["".join(choice.choices(LETTERS, k=choice.randint(3, 9))) for _ in range(5000)]
    return [" ".join(choice.choices(words, k=num_words)) for _ in range(count)]


def likeness(first: str, second: str) -> float:
    """Jaccard of sets of five letters, the plain way."""
    one, other = ({text[at:at + 5] for at in range(max(len(text) - 4, 1))} for text in (first, second))
    return len(one & other) / len(one | other)


def test_planted_ones_are_found_and_no_others() -> None:
    texts = sentences(3000, 20)
    planted = {}
    for index in range(0, 3000, 10):
        words = texts[index].split()
        words[index // 10 % 20] = "changed"
        planted[index] = len(texts)
        texts.append(" ".join(words))
    found = {tuple(pair) for pair in near_duplicates(texts).tolist()}
    true = {(index, copy) for index, copy in planted.items() if likeness(texts[index], texts[copy]) >= SIMILARITY}
    # A pair at the limit is missed with (1 - 0.8^4)^16 = 0.0002: of 300 none is expected to be.
    assert len(true) > 200 and found == true


@settings(max_examples=examples(50))
@given(st.lists(st.text(alphabet="abcd ", max_size=30), max_size=12))
def test_what_is_found_is_alike(texts: list[str]) -> None:
    for first, second in near_duplicates(texts).tolist():
        assert first < second
        one, other = (" ".join(text.split()) or text for text in (texts[first], texts[second]))
        assert likeness(one.ljust(5, "\0"), other.ljust(5, "\0")) >= SIMILARITY


def test_case_and_marks_do_not_count() -> None:
    assert near_duplicates(["Play it, Sam!", "play  it sam", "something else"]).tolist() == [[0, 1]]


@pytest.mark.parametrize("texts", [[], ["one"], ["", "!!"], ["a", "b"], ["été à Paris", "Ünïcode nothing alike"]])
def test_few_short_and_foreign_texts(texts: list[str]) -> None:
    assert near_duplicates(texts).tolist() == []


def test_long_texts_are_cut_into_chunks_of_work() -> None:
    long = sentences(3, 200_000)
    assert near_duplicates([*long, long[0] + " end"]).tolist() == [[0, 3]]


def test_a_crowd_of_like_texts_takes_no_square_of_time() -> None:
    texts = [f"the same long beginning of every one of these requests, number {number}" for number in range(5000)]
    start = time.process_time()
    pairs = near_duplicates(texts)
    # All pairs would be 12.5 million, minutes of comparing; 16 buckets with 8 neighbours are at most 640,000.
    assert time.process_time() - start < 30 and len(pairs) < 640_000 and len(set(pairs[:, 1].tolist())) > 4900
