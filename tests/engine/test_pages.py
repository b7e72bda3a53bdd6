"""The page pool: reference counts, the prefix index, eviction, and random schedules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from brise.engine.pages import Pages, chained_key
from tests.profiles import examples


def keys_of(count: int) -> list[bytes]:
    return [bytes([index]) for index in range(count)]


def test_a_released_registered_page_is_found_again() -> None:
    pages = Pages(4, 16)
    held = pages.allocate(2)
    for page, key in zip(held, keys_of(2), strict=True):
        pages.register(page, key)
    pages.release(held)
    assert pages.num_available == 4
    assert pages.match(keys_of(3)) == held
    assert pages.num_available == 2
    pages.check([held])


def test_matching_stops_at_the_first_unknown_key() -> None:
    pages = Pages(4, 16)
    held = pages.allocate(1)
    pages.register(held[0], b"second")
    assert pages.match([b"first", b"second"]) == []


def test_the_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    pages = Pages(3, 16)
    held = pages.allocate(3)
    for page, key in zip(held, keys_of(3), strict=True):
        pages.register(page, key)
    pages.release(held)
    assert pages.allocate(1) == [held[2]]
    assert pages.match(keys_of(3)) == held[:2]


def test_equal_contents_are_registered_once() -> None:
    pages = Pages(2, 16)
    first, second = pages.allocate(2)
    pages.register(first, b"same")
    pages.register(second, b"same")
    pages.release([second])
    pages.check([[first]])
    assert pages.num_idle == 0


def test_without_prefix_cache_nothing_is_found() -> None:
    pages = Pages(2, 16, prefix_cache=False)
    held = pages.allocate(1)
    pages.register(held[0], b"key")
    assert pages.match([b"key"]) == []


def test_check_notices_a_lost_reference() -> None:
    pages = Pages(2, 16)
    pages.allocate(1)
    with pytest.raises(AssertionError, match="references and holders"):
        pages.check([])


def test_a_key_depends_on_all_tokens_before() -> None:
    page = np.arange(4, dtype=np.int32)
    first, other = chained_key(b"", page), chained_key(b"", page + 1)
    assert chained_key(first, page) != chained_key(other, page)


class PagesMachine(RuleBasedStateMachine):
    """Holders come, share prefixes, grow and go, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(12, 4)
        self.holders: list[list[int]] = []

    @rule(prefix=st.integers(0, 2), length=st.integers(0, 4), extra=st.integers(0, 3))
    def arrive(self, prefix: int, length: int, extra: int) -> None:
        keys = [bytes([prefix, index]) for index in range(length)]
        held = self.pages.match(keys)
        num_matched = len(held)
        if length - num_matched + extra > self.pages.num_available:
            self.pages.release(held)
            return
        held += self.pages.allocate(length - num_matched + extra)
        for page, key in list(zip(held, keys, strict=False))[num_matched:]:
            self.pages.register(page, key)
        self.holders.append(held)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        held = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pages.release(held)

    @invariant()
    def books_agree(self) -> None:
        self.pages.check(self.holders)


PagesMachine.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40)
TestRandomHolders = PagesMachine.TestCase
