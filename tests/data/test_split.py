"""The split holds out whole conversations, and rows that come later move nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.data import identity
from brise.data.example import TrainingExample
from brise.data.split import Split, split
from brise.errors import EvidenceError
from tests.data.rows import chat, example

ROWS = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.none() | st.integers(0, 9)), min_size=1, max_size=30)


def examples(rows: list[tuple[str, int | None]]) -> list[TrainingExample]:
    return [example(chat(user, str(index), **({} if name is None else {"conversation": name})), f"a:{index}")
            for index, (user, name) in enumerate(rows)]


def sides(found: Split) -> dict[int, str]:
    return {index: name for name in ("train", "held_out", "left_out") for index in getattr(found, name)}


@given(ROWS, st.integers(0, 5), st.floats(0, 0.9))
def test_conversations_and_prompts_stay_together(rows: list[tuple[str, int | None]], seed: int, share: float) -> None:
    data = examples(rows)
    found = sides(split(data, seed, share))
    assert sorted(found) == list(range(len(data)))
    for key in (identity.prompt, lambda each: each.conversation):
        by_key: dict[object, set[str]] = {}
        for index, each in enumerate(data):
            by_key.setdefault(key(each), set()).add(found[index])
        assert all(len(names - {"left_out"}) <= 1 for names in by_key.values())


@given(ROWS, ROWS, st.integers(0, 5))
def test_rows_that_come_behind_move_nothing(rows: list[tuple[str, int | None]], more: list[tuple[str, int | None]],
                                            seed: int) -> None:
    before, after = (sides(split(examples(each), seed, 0.4)) for each in (rows, rows + more))
    assert {index: after[index] for index in before} == before


@given(st.lists(st.text(min_size=1), unique=True, min_size=2, max_size=30), st.data())
def test_without_names_the_order_does_not_matter(users: list[str], data: st.DataObject) -> None:
    def held_out(order: list[str]) -> set[str]:
        return {order[index] for index in split([_plain(user) for user in order], 0, 0.4).held_out}

    assert held_out(users) == held_out(data.draw(st.permutations(users)))


def test_about_the_share_is_held_out_and_another_seed_holds_out_others() -> None:
    data = [_plain(str(number)) for number in range(2000)]
    first, again, other = (split(data, seed, 0.1).held_out for seed in (0, 0, 1))
    # Binomial with n = 2000, p = 0.1: the deviation is 13.4, five of them are 67.
    assert abs(len(first) - 200) < 67 and first == again
    assert len(set(first) & set(other)) < 60


@pytest.mark.parametrize("count", [0, 1, 17, 99])
def test_a_count_is_held_out_exactly_where_conversations_have_one_row(count: int) -> None:
    assert len(split([_plain(str(number)) for number in range(100)], 0, 0.1, count).held_out) == count


@pytest.mark.parametrize("count", [-1, 100])
def test_a_count_that_leaves_nothing_is_refused(count: int) -> None:
    with pytest.raises(EvidenceError, match="some must be left"):
        split([_plain(str(number)) for number in range(100)], 0, 0.1, count)


def test_a_row_between_the_sides_is_left_out() -> None:
    lone = {number: side for number in range(20)
            for side in [sides(split(examples([("x", number)]), 0, 0.5))[0]]}
    one = next(number for number in lone if lone[number] == "train")
    other = next(number for number in lone if lone[number] == "held_out")
    assert split(examples([("a", one), ("b", other), ("b", one)]), 0, 0.5) == Split((0,), (1,), (2,))


def _plain(user: str) -> TrainingExample:
    messages = ({"role": "user", "content": user}, {"role": "assistant", "content": "ho"})
    return TrainingExample(messages, "a:1", identity.derived_conversation(messages, ()))
