"""A certificate is its own replay: to the last bit, and a change of any bit shows."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.errors import EvidenceError
from brise.stats import certificate as forms
from brise.stats import sequential_test
from brise.stats.certificate import Certificate, CertifiedModel, Claim, Window
from brise.stats.sequential_test import NonInferiorityTest
from tests.stats.planted import differences


@pytest.fixture(scope="module")
def whole() -> Certificate:
    """Of an equal model; with means of three rows, so that differences are no round numbers."""
    units, delta = 2000, 0.02
    values = differences(np.random.default_rng(1), units, 3, 0.06, 0.01).mean(axis=1)
    outcome = sequential_test.decide(values, NonInferiorityTest(delta))
    assert outcome.verdict == "promote" and outcome.decided_at is not None
    return Certificate(
        "tickets", CertifiedModel("mini", "a" * 64), ("big fp1",), ("none",),
        Window("log.jsonl", None, 1.0, 2.5, "conversation", 3 * units, "b" * 64), delta, 0.05, 0.05, 1, 20.0, 1.0, 0.06,
        0.08, "outcome", "exact", ("route",), ("route=a",), (Claim("length", "as long", 40.0),), tuple(values.tolist()),
        tuple(outcome.path.tolist()), outcome.decided_at, 3.0, 4.0, {"score": None}, "brise 0")


def test_a_certificate_goes_through_json_and_replays_bit_for_bit(whole: Certificate) -> None:
    again = forms.from_json(json.loads(forms.canonical(whole)))
    assert again == whole and forms.digest(again) == forms.digest(whole)
    assert forms.replay(again).is_equal and forms.replay(again, whole.differences).is_equal


@settings(max_examples=10)
@given(at=st.integers(0, 1999))
def test_one_bit_of_the_path_or_of_a_difference_shows(whole: Certificate, at: int) -> None:
    path = list(whole.path)
    path[at] = float(np.nextafter(path[at], np.inf))
    assert forms.replay(replace(whole, path=tuple(path))).unit == at + 1
    values = list(whole.differences)
    values[at] = float(np.nextafter(values[at], 1.0))
    assert forms.replay(whole, values).unit == at + 1


def test_fewer_units_another_verdict_and_another_margin_show(whole: Certificate) -> None:
    assert "there are 1999" in forms.replay(whole, whole.differences[:-1]).reason
    assert "verdict was promote at unit 3" in forms.replay(replace(whole, decided_at=3)).reason
    assert not forms.replay(replace(whole, delta=0.03)).is_equal
    assert not forms.replay(replace(whole, path=whole.path[:-1])).is_equal


def test_the_digest_is_of_every_field(whole: Certificate) -> None:
    others = [replace(whole, task="x"), replace(whole, teachers=()), replace(whole, contexts=("x",)),
              replace(whole, student=CertifiedModel("mini")), replace(whole, expires_at_s=5.0)]
    assert len({forms.digest(one) for one in [whole, *others]}) == 6


@settings(max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=700), st.floats(0, 0.9))
def test_a_path_does_not_depend_on_what_comes_behind_nor_beside(values: list[float], delta: float) -> None:
    units = np.array(values)
    path = sequential_test.wealth(units, delta)
    assert (sequential_test.wealth(units[:len(units) // 2 + 1], delta) == path[:len(units) // 2 + 1]).all()
    assert (sequential_test.wealth(np.stack([units[::-1], units]), delta)[1] == path).all()


def test_evidence_beyond_a_doubles_range_comes_back() -> None:
    path = sequential_test.wealth(np.concatenate([np.ones(3000), np.full(3000, -1.0)]), 0.0)
    assert np.isfinite(path).all() and path[2999] > 1e300 and path[-1] < 1


@pytest.mark.parametrize(("change", "message"), [
    ({"format": 2}, "no certificate of format 1"), ({"n": 3}, "n is 3"), ({"extra": 1}, "no certificate"),
    ({"path": ["x"]}, "no list of numbers"), ({"teachers": "big"}, "no list of texts"), ({"student": None}, "no cert")])
def test_what_is_no_certificate_is_refused(whole: Certificate, change: dict[str, Any], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        forms.from_json(json.loads(forms.canonical(whole)) | change)
    with pytest.raises(EvidenceError, match="its format is None"):
        forms.from_json([])
