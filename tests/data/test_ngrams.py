"""Tables of n-grams: counted as plain dictionaries count, bounded, and read from files that nobody vouches for."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.data.count_ngrams import CountedRow, NgramOptions, count_ngrams
from brise.data.example import EncodedRow
from brise.data.ngrams import (
    ENTRY_BYTES,
    FILE,
    LEAST_PROBABILITY,
    ORDER,
    STEPS,
    NgramTable,
    read_table,
    table_in,
    tokenizer_digest,
)
from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.text.protocols import TextTokenizer
from tests.text.vocabulary import tokenizer as tiny_tokenizer

PROMPT = 3  # tokens before each answer
TINY = tiny_tokenizer()


def rows_of(answers: Sequence[tuple[str, Sequence[int]]]) -> list[CountedRow]:
    """Answers with their owners, each behind the prompt 1 2 3."""
    out = []
    for owner, answer in answers:
        tokens = np.array([1, 2, 3, *answer], np.int32)
        out.append(CountedRow(EncodedRow(tokens, np.arange(len(tokens)) >= PROMPT, "here"), owner))
    return out


def table_of(answers: Sequence[tuple[str, Sequence[int]]], tokenizer: TextTokenizer,
             options: NgramOptions | None = None) -> NgramTable:
    options = options or NgramOptions()
    return table_in(memoryview(count_ngrams(rows_of(answers), tokenizer, "rows", options)))


class Reference:
    """The same by dictionaries and plain loops."""

    def __init__(self, answers: Sequence[tuple[str, Sequence[int]]], least: int) -> None:
        self.counts = defaultdict[tuple[int, ...], Counter[int]](Counter)
        self.owners = defaultdict[tuple[tuple[int, ...], int], set[str]](set)
        self.least = least
        for owner, answer in answers:
            tokens = [1, 2, 3, *answer]
            for at in range(PROMPT, len(tokens)):
                for length in range(ORDER + 1):
                    if at >= length:
                        context = tuple(tokens[at - length:at])
                        self.counts[context][tokens[at]] += 1
                        self.owners[context, tokens[at]].add(owner)

    def probability(self, context: tuple[int, ...], token: int) -> float:
        counts = self.counts[context]
        if not context:
            return counts[token] / counts.total()
        return (counts[token] + len(counts) * self.probability(context[1:], token)) / (counts.total() + len(counts))

    def after(self, context: Sequence[int]) -> tuple[int, float] | None:
        for length in range(min(ORDER, len(context)), 0, -1):
            end = tuple(context[len(context) - length:])
            known = [token for token in self.counts.get(end, ()) if len(self.owners[end, token]) >= self.least]
            if known:
                best = min(known, key=lambda token: (-self.probability(end, token), token))
                return best, self.probability(end, best)
        return None


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return TINY


ANSWERS = st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(4, 9), max_size=12)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(answers=ANSWERS, least=st.integers(1, 3))
def test_table_says_what_dictionaries_say(answers: list[tuple[str, list[int]]], least: int) -> None:
    table, reference = table_of(answers, TINY, NgramOptions(least=least)), Reference(answers, least)
    for _, answer in answers:
        for at in range(len(answer) + 1):
            context = [1, 2, 3, *answer[:at]]
            found, expected = table.after(context), reference.after(context)
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert abs(reference.probability(_end(reference, context), found[0]) - expected[1]) < 1e-9
                assert abs(found[1] - expected[1]) <= 0.5 / STEPS + 1e-9


def _end(reference: Reference, context: Sequence[int]) -> tuple[int, ...]:
    """The context by which the reference decides."""
    return next(tuple(context[len(context) - length:]) for length in range(ORDER, 0, -1)
                if length <= len(context) and reference.after(context[len(context) - length:]) is not None
                and any(len(reference.owners[tuple(context[len(context) - length:]), token]) >= reference.least
                        for token in reference.counts.get(tuple(context[len(context) - length:]), ())))


def test_what_one_owner_said_is_left_out(tokenizer: TextTokenizer) -> None:
    secret, common = [9, 8, 7, 6, 5], [10, 11, 12]
    table = table_of([("anna", secret), ("anna", secret), ("ben", common), ("carl", common)], tokenizer)
    assert table.start([1, 2, 3]).propose(8)[0] == common
    assert all(table.after([*secret[:at]]) is None for at in range(1, len(secret)))
    alone = table_of([("anna", secret), ("ben", common)], tokenizer, NgramOptions(least=1))
    assert alone.after(secret[:2]) is not None


def test_drafts_follow_the_answer(tokenizer: TextTokenizer) -> None:
    answer = [10, 11, 12, 13, 14, 15, 16]
    drafts = table_of([("a", answer), ("b", answer)], tokenizer).start([5, 1, 2, 3])
    assert drafts.propose(3)[0] == answer[:3]
    assert drafts.propose(100)[0] == answer, "an answer's end ends the drafts"
    drafts.extend(answer[:5])
    assert drafts.propose(100)[0] == answer[5:]
    drafts.extend([77])
    assert drafts.propose(4) == ([], [])


def test_unlikely_drafts_are_not_made(tokenizer: TextTokenizer) -> None:
    random.seed(0)
    answers = [(f"o{number}", random.choices(range(4, 30), k=6)) for number in range(300)]
    tokens, probabilities = table_of(answers, tokenizer).start([1, 2, 3]).propose(50)
    assert len(tokens) == len(probabilities) < 3
    assert np.prod(probabilities) >= LEAST_PROBABILITY or not tokens


def test_size_is_bounded_and_the_frequent_stay(tokenizer: TextTokenizer) -> None:
    random.seed(1)
    rare = [(f"o{number}", [random.randrange(4, 250) for _ in range(20)]) for number in range(50)]
    answers = [*rare, *((f"b{owner}", answer) for owner, answer in rare), *[(f"c{n}", [10, 11, 12]) for n in range(99)]]
    data = count_ngrams(rows_of(answers), tokenizer, "rows", NgramOptions(nbytes=4096))
    table = table_in(memoryview(data))
    assert 3000 < len(data) <= 4096
    assert table.start([1, 2, 3]).propose(3)[0] == [10, 11, 12]
    assert len(table) < len(table_of(answers, tokenizer))


def test_equal_rows_give_equal_bytes(tokenizer: TextTokenizer) -> None:
    answers = [("a", [10, 11, 12]), ("b", [10, 11, 13]), ("c", [10, 11, 13])]
    assert len({count_ngrams(rows_of(answers), tokenizer, "rows") for _ in range(2)}) == 1


def test_nothing_makes_an_empty_table(tokenizer: TextTokenizer) -> None:
    table = table_of([], tokenizer)
    assert (len(table), table.facts.answers, table.start([]).propose(4)) == (0, 0, ([], []))


def test_file_of_another_tokenizer_is_refused_by_name(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(count_ngrams(rows_of([("a", [10, 11]), ("b", [10, 11])]), tokenizer, "rows"))
    assert read_table(path, tokenizer_digest(tokenizer)).after([3]) is not None
    with pytest.raises(UnsupportedError, match=r"ngrams\.bin: the table is for the tokenizer"):
        read_table(path, "0" * 64)


DATA = count_ngrams(rows_of([("a", [10, 11, 12]), ("b", [10, 11, 12])]), TINY, "rows")


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0, len(DATA) - 1), byte=st.integers(0, 255), cut=st.integers(0, 40), random=st.randoms())
def test_changed_files_are_refused_or_harmless(at: int, byte: int, cut: int, random: random.Random) -> None:
    data = bytearray(DATA)
    data[at] = byte
    data = data[:len(data) - cut] if random.random() < 0.3 else data
    try:
        table = table_in(memoryview(bytes(data)))
    except BriseError:
        return
    tokens, probabilities = table.start([1, 2, 3]).propose(20)
    assert all(0 <= token < table.facts.vocab_size for token in tokens)
    assert all(0 < probability < 1 for probability in probabilities)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda data: data[:10], "size of the table"),
    (lambda data: b"x" + data[1:], "no table of n-grams"),
    (lambda data: data[:16] + b"\xff\xff\xff\xff" + data[20:], "header_bytes"),
    (lambda data: data[:20] + b"\xff\xff\xff\xff" + data[24:], "size of the table"),
    (lambda data: data + b"\0", "size of the table"),
    (lambda data: data.replace(b'"order": 4', b'"order": 9'), "vocab_size and order"),
    (lambda data: data.replace(b'"source": "rows"', b'"source": "hell"'), "source"),
    (lambda data: data[:-4] + b"\0\xff\xff\xff", "a token"),
    (lambda data: data[:_first(data)] + data[_first(data) + 8:_first(data) + 16] * 2 + data[_first(data) + 16:],
     "order of the keys")])
def test_damaged_files_are_named(change: object, reason: str) -> None:
    assert callable(change)
    with pytest.raises(CheckpointError, match=reason):
        table_in(memoryview(change(DATA)))


def _first(data: bytes) -> int:
    """Where the keys begin."""
    return len(data) - ENTRY_BYTES * len(table_in(memoryview(DATA)))
