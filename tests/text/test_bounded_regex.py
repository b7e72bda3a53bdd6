"""A search in bounded steps finds what Python's own finds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.text.bounded_regex import Budget, search

PATTERNS = (r"^(?!foo)[a-z]{2,4}$", r"^(?=.*\d)[a-z0-9]{4,8}$", r"^(a|b)\1$", r"\bfoo\b", r"^\d{3}\Z", r"(?i)^abc$",
            r"^(?:a|ab)*c?$", r"a{2,}?b", r"(?<=x)y", r"(?<!x)y", r"^[^\W\d]+$", r"^(a*)*b$", r"^(?P<n>a+)-(?P=n)$",
            r"(ab)+$", "", "^$", "x*", r"\Bo", r"(?s)a.b", r"^\S+\s\S+$")


@pytest.mark.parametrize("pattern", PATTERNS)
@given(st.text("abfoxyAB1_ -\n", max_size=8))
def test_it_finds_what_python_finds(pattern: str, text: str) -> None:
    wanted = re.search(pattern.replace("$", r"\Z"), text, re.ASCII) is not None
    assert search(pattern, text, Budget(100_000)) is wanted


@pytest.mark.parametrize("pattern", ["(", "x" * 1025, r"(a)?(?(1)b|c)"])
def test_what_cannot_be_read_is_not_decided(pattern: str) -> None:
    assert search(pattern, "x", Budget()) is None


def test_a_budget_is_for_all_searches() -> None:
    budget = Budget(40)
    assert search("^a*$", "aaaa", budget) is True and 0 < budget.steps < 40
    assert search("(a|aa)*b", "a" * 50, budget) is None and search("a", "b" * 9, budget) is None
