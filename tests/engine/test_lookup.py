"""Drafts by copying: they are what stood behind the longest equal run, and cost time in proportion to the tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.engine.lookup import TOKEN_BYTES, LookupState, Prediction, PromptLookup, _Places
from tests.cpu_time import cpu_s
from tests.profiles import examples

LONGEST = 16


def equal_before(tokens: list[int], place: int) -> int:
    count = 0
    while count < min(place, LONGEST) and tokens[place - 1 - count] == tokens[len(tokens) - 1 - count]:
        count += 1
    return count


@settings(max_examples=examples(150))
@given(prompt=st.lists(st.integers(0, 3), min_size=1, max_size=40), answer=st.lists(st.integers(0, 3), max_size=40))
def test_a_draft_stood_behind_tokens_like_the_last_ones(prompt: list[int], answer: list[int]) -> None:
    state = PromptLookup().start(prompt)
    tokens = list(prompt)
    for token in answer:
        state.extend([token])
        tokens.append(token)
        drafted, chances = state.propose(6)
        places = [place for place in range(1, len(tokens)) if equal_before(tokens, place)]
        assert bool(drafted) == bool(places)
        assert len(drafted) == len(chances) and all(0 < chance < 1 for chance in chances)
        if drafted:
            assert any(drafted[0] == tokens[place] for place in places)


def test_the_longest_equal_run_is_followed() -> None:
    state = PromptLookup().start([1, 2, 3, 4, 50, 9, 3, 4, 60, 9, 9])
    state.extend([1, 2, 3, 4])
    assert list(state.propose(1)[0]) == [50]


def test_a_copy_follows_its_place_and_repeats_a_loop() -> None:
    state = PromptLookup().start([5, 6, 7, 8, 9, 10, 11])
    state.extend([6])
    assert list(state.propose(9)[0]) == [7, 8, 9, 10, 11]
    state.extend([7, 8])
    assert list(state.propose(2)[0]) == [9, 10]
    state.extend([1, 2, 1, 2])
    assert list(state.propose(5)[0]) == [1, 2, 1, 2, 1]


def test_a_rare_token_promises_more_than_a_frequent_one() -> None:
    state = PromptLookup().start([1, 40, 2, 41, 1, 42, 1, 43, 1, 44])
    state.extend([2])
    (rare, *_) = state.propose(1)[1]
    state.extend([1])
    (frequent, *_) = state.propose(1)[1]
    assert rare > frequent


def test_a_prediction_is_followed_from_its_start_and_found_again_behind_a_change() -> None:
    state = Prediction([10, 11, 12, 13, 14, 15, 16]).start([1, 2, 3])
    assert list(state.propose(3)[0]) == [10, 11, 12]
    state.extend([10, 99])
    assert list(state.propose(3)[0]) == []
    state.extend([13, 14])
    assert list(state.propose(3)[0]) == [15, 16]


def test_answers_of_a_request_share_the_index_of_its_prompt() -> None:
    lookup, prompt = PromptLookup(), (1, 2, 3, 1)
    first, second = lookup.start(prompt), lookup.start(prompt)
    first.extend([7])
    assert second.propose(2)[0] == [2, 3] and first.propose(2)[0] == []


@pytest.mark.parametrize("period", [1, 3, 50_000])
def test_time_and_memory_are_in_proportion_to_the_tokens(period: int) -> None:
    def start(length: int) -> LookupState:
        return PromptLookup().start([index % period for index in range(length)])

    def write(length: int) -> float:
        state = start(length)
        return cpu_s(lambda: [state.extend([index % period]) for index in range(length // 10)])

    assert write(100_000) < 40 * max(write(10_000), 0.002)
    for places in (start(100_000)._places, start(3)._own):
        assert nbytes(places) <= TOKEN_BYTES * max(places._end - places._first, 64)


def nbytes(places: _Places) -> int:
    return places._counts.nbytes + sum(table.nbytes for table in places._tables)
