"""The fuzzer's parsers take their seeds, and the fuzzer's changes of JSON are JSON again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz import mutate, parsers
from tests.fuzz.parsers import ALL
from tests.fuzz.run import Row, table
from tests.fuzz.target import Target

SEEDS = [pytest.param(target, id=target.name) for target in ALL]


@pytest.mark.parametrize("target", SEEDS)
def test_seeds_and_halves_of_them_are_no_findings(target: Target) -> None:
    for seed in target.seeds():
        assert len(seed) <= target.max_bytes
        for data in (seed, seed[:len(seed) // 2], b""):
            assert target.outcome(data) is None


def test_changed_json_is_json() -> None:
    seed = json.dumps({"a": [1, "x", {"b": None}], "c": 0.5}).encode()
    changed = {mutate.changed(seed, 1 << 12, number, lambda data, most: b"", by_line=False) for number in range(200)}
    assert len(changed) > 100 and all(json.loads(each) is not Ellipsis for each in changed if each)


def test_names_are_told_apart_and_a_defect_is_a_finding() -> None:
    assert len({target.name for target in ALL}) == len(ALL)
    assert isinstance(Target("x", lambda data: {}[data], list).outcome(b"a"), KeyError)
    assert parsers.named("image").name == "image"


def test_the_table_names_every_finding() -> None:
    shown = table([Row("a", 10, 0.5), Row("b", 1, 0.25, {"KeyError at x.py:1": Path("finding-1")})])
    assert "11 inputs, 1 findings" in shown and "KeyError at x.py:1" in shown and "500 ms" in shown
