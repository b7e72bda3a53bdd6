"""From shadowed traffic to a certified rule, on data whose truth was planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from brise.errors import EvidenceError
from brise.prove import calibrate, calibration_rows
from brise.prove.calibrate import Calibration
from brise.prove.calibration_rows import CalibrationRow, CalibrationRows
from brise.stats.thresholds import RiskClaim
from brise.switch.rule import from_body, to_body
from brise.switch.signals import OF_TOKENS
from brise.traffic.sql_store import SqlStore
from tests.stats.planted import three_standard_errors
from tests.stats.test_thresholds_plan import APART
from tests.switch.shadow_rows import judged, put
from tests.switch.shadow_rows import shadowed as traffic

PROMISE = RiskClaim(0.05, 0.05)


def planted(number: int, seed: int, error: float = 0.12, **more: float) -> CalibrationRows:
    """Rows without a store: one signal that knows, one that does not, each a conversation of its own."""
    rng, rows = np.random.default_rng(seed), list[CalibrationRow]()
    for at in range(number):
        wrong = bool(rng.random() < error)
        signals = {"veto": 0.0, "logprob": float(rng.normal() - APART * wrong), "length": float(rng.normal()), **more}
        rows.append(CalibrationRow(f"e{at}", f"c{at}", float(at), "text", signals, wrong, wrong, 0.01))
    return CalibrationRows(tuple(rows), "small", "fidelity", ())


def calibrated(rows: CalibrationRows) -> Calibration:
    return calibrate.calibrate(rows, "calls", PROMISE)


def test_a_rule_is_certified_and_computes_the_same_everywhere() -> None:
    rows = planted(1500, 1)
    found = calibrated(rows)
    assert found.rule is not None and [term.signal for term in found.rule.terms] == ["logprob"]
    assert 0.6 < found.rule.kept < 0.9 and found.rule.bound <= 0.05 and found.rule.units == 1000
    assert found.rule == from_body(to_body(found.rule)) and found.rule.tight > found.rule.threshold
    later = rows.rows[500:]
    kept = [row for row in later if found.rule.keeps(row.signals)]
    assert len(kept) / len(later) == pytest.approx(found.rule.kept)
    assert found.rule.baseline.disagreed == np.mean([row.differs for row in kept])
    assert sum(found.rule.baseline.shares) == pytest.approx(1) and len(found.rule.baseline.shares) == 10
    assert found.saving_usd == pytest.approx(found.rule.kept * 0.95 * 10)


def test_a_rule_is_certified_without_the_signals_that_a_server_does_not_give_and_they_are_named() -> None:
    rows = planted(300, 1)
    without = replace(rows, rows=tuple(replace(row, signals={"veto": 0.0, "absent": float(row.wrong)})
                                       for row in rows.rows))
    found = calibrated(without)
    assert set(found.missing) == set(OF_TOKENS) and not {term.signal for term in found.draft.terms} & set(OF_TOKENS)
    assert not {"logprob", "length"} & set(calibrated(rows).missing)
    with pytest.raises(EvidenceError, match="'logprob' is not there for all answers") as refused:
        calibrate.calibrate(without, "calls", PROMISE, signals=("logprob",))
    assert "no log-probabilities" in (refused.value.hint or "")


def test_feasibility_is_said_from_the_earlier_conversations() -> None:
    what = calibrated(planted(1500, 2)).feasibility
    assert what.rows == 500 and what.certifying == 1000 and what.least == 59
    assert what.floor == pytest.approx((what.error - 0.05) / 0.95)
    assert what.auroc == pytest.approx(0.9, abs=0.04) and 0.5 < what.expected < what.oracle
    assert what.needed is not None and what.needed.units <= 2000


def test_the_promise_is_broken_as_seldom_as_it_says(repetitions: Callable[[int], int]) -> None:
    runs, broken, certified = repetitions(100), 0, 0
    truth = planted(20_000, 7)
    signals = [row.signals for row in truth.rows]
    wrong = np.array([row.wrong for row in truth.rows])
    for seed in range(runs):
        rule = calibrated(planted(450, 100 + seed)).rule
        if rule is not None:
            certified += 1
            odds = np.array([row["logprob"] for row in signals])
            term = rule.terms[0]
            chances = 1 / (1 + np.exp(-(rule.bias + term.weight * (odds - term.mean) / term.scale)))
            if len(rule.terms) == 1:
                broken += wrong[chances >= rule.threshold].mean() > 0.05
    assert certified > runs / 2 and broken / runs <= three_standard_errors(0.05, runs)


def test_what_cannot_be_told_apart_is_impossible() -> None:
    rng = np.random.default_rng(3)
    rows = tuple(CalibrationRow(f"e{at}", f"c{at}", float(at), "", {"veto": 0.0, "logprob": float(rng.normal())}, wrong,
                                wrong)
                 for at, wrong in enumerate(rng.random(900) < 0.3))
    found = calibrated(CalibrationRows(rows, "small", "fidelity", ()))
    assert found.rule is None and "even if all were known" in found.why


def test_too_few_answers_are_impossible_even_if_all_are_right() -> None:
    found = calibrated(planted(90, 4, error=0.0))
    assert found.rule is not None, "60 right ones are just enough for 5 %"
    strict = calibrate.calibrate(planted(90, 4, error=0.0), "calls", RiskClaim(0.01, 0.05))
    assert strict.rule is None and "even if all were right, 299 are needed" in strict.why
    with pytest.raises(EvidenceError, match="85 independent conversations, at least 90"):
        calibrated(planted(85, 4))


def test_several_signals_are_taken_only_if_they_are_better() -> None:
    rng = np.random.default_rng(5)
    rows = list[CalibrationRow]()
    for at in range(900):
        wrong = bool(rng.random() < 0.3)
        signals = {"veto": 0.0, **{name: float(rng.normal() - 1.2 * wrong) for name in ("logprob", "least", "q10")}}
        rows.append(CalibrationRow(f"e{at}", f"c{at}", float(at), f"text {at % 7}", signals, wrong, wrong))
    draft = calibrated(CalibrationRows(tuple(rows), "small", "fidelity", ())).draft
    assert {"logprob", "least", "q10"} <= {term.signal for term in draft.terms}


def test_vetoed_answers_are_never_kept_and_values_said_by_nobody_become_a_veto() -> None:
    rows = planted(1500, 6, error=0.05).rows
    changed = tuple(CalibrationRow(row.exchange, row.cluster, row.at_s, row.text, {**row.signals,
                                                                                "absent": float(at % 10 == 0)},
                                   at % 10 == 0, at % 10 == 0) for at, row in enumerate(rows))
    found = calibrated(CalibrationRows(changed, "small", "fidelity", ()))
    assert found.rule is not None and "absent" in found.rule.vetoes
    assert not found.rule.keeps({**rows[0].signals, "logprob": 9.0, "absent": 1.0})
    assert not found.rule.keeps({**rows[0].signals, "logprob": 9.0, "veto": 1.0})


def test_rows_come_from_the_store(store: SqlStore) -> None:
    put(store, traffic(40))
    rows = calibration_rows.read(store, "calls", None)
    assert rows.candidate == "small" and rows.label_source == "fidelity" and len(rows.rows) == 40
    assert [row.cluster for row in rows.rows] == [f"c{at}" for at in range(40)]
    assert all(row.differs == row.wrong for row in rows.rows) and any(row.wrong for row in rows.rows)
    with pytest.raises(EvidenceError, match="no request of the task 'other'"):
        calibration_rows.read(store, "other", None)


def test_labels_judge_what_differs(store: SqlStore) -> None:
    written = traffic(40, error=0.5)
    differing = [answer for answer in written[1] if "wrong" in answer.response["choices"][0]["message"]["content"]]  # type: ignore[index]
    put(store, judged(written, {answer.id: float(at % 2) for at, answer in enumerate(differing)}))
    rows = calibration_rows.read(store, "calls", None)
    assert rows.label_source == "human" and len(rows.rows) == 40
    assert sum(row.wrong for row in rows.rows) == (len(differing) + 1) // 2 < sum(row.differs for row in rows.rows)
    with pytest.raises(EvidenceError, match=r"0 of \d+ answers that differ have a label from outcome"):
        calibration_rows.read(store, "calls", None, label_source="outcome")


def test_too_few_labels_are_no_labels(store: SqlStore) -> None:
    written = traffic(40, error=0.5)
    put(store, judged(written, {written[1][0].id: 1.0}))
    assert calibration_rows.read(store, "calls", None).label_source == "fidelity"


def test_a_rule_is_fitted_on_the_newest_version_of_the_candidate(store: SqlStore) -> None:
    exchanges, answers, _ = traffic(1400)
    store.add(exchanges, [replace(answer, fingerprint="old" if at < 200 else "new")
                          for at, answer in enumerate(answers)])
    found = calibration_rows.read(store, "calls", None)
    assert len(found.rows) == 1200 and found.fingerprint == "new"
    assert found.left_out == ((200, calibration_rows.OTHER_VERSION),)
    rule = calibrated(found).rule
    assert rule is not None and rule.fingerprint == "new"
    assert from_body(to_body(rule)) == rule


def test_what_differs_and_has_no_label_counts_as_wrong(store: SqlStore) -> None:
    written = traffic(300, error=0.1, seed=3)
    differing = [answer.id for answer in written[1] if "wrong" in str(answer.response)]
    put(store, judged(written, {id: 0.0 for id in differing[len(differing) // 10:]}))
    rows = calibration_rows.read(store, "calls", None)
    assert rows.label_source == "human" and rows.unlabelled == len(differing) // 10 > 0
    assert len(rows.rows) == 300 and sum(row.wrong for row in rows.rows) == len(differing)
    assert not rows.left_out


def test_errors_that_go_with_length_do_not_break_the_promise_about_answers(repetitions: Callable[[int], int]) -> None:
    """One conversation in ten has eight answers, of which 25 % are wrong, of others 4 %: over all answers 13 %."""
    runs, broken = repetitions(200), 0

    def drawn(number: int, seed: int) -> CalibrationRows:
        rng, rows = np.random.default_rng(seed), list[CalibrationRow]()
        for at in range(number):
            size = 8 if rng.random() < 0.1 else 1
            for turn in range(size):
                wrong = bool(rng.random() < (0.25 if size == 8 else 0.04))
                signals = {"veto": 0.0, "logprob": float(rng.normal() - APART * wrong)}
                rows.append(CalibrationRow(f"e{at}-{turn}", f"c{at}", float(at), "text", signals, wrong, wrong))
        return CalibrationRows(tuple(rows), "small", "fidelity", ())

    truth = drawn(8000, 1).rows
    signals, wrong = np.array([row.signals["logprob"] for row in truth]), np.array([row.wrong for row in truth])
    for seed in range(runs):
        rule = calibrated(drawn(450, 100 + seed)).rule
        if rule is not None:
            term = rule.terms[0]
            chances = 1 / (1 + np.exp(-(rule.bias + term.weight * (signals - term.mean) / term.scale)))
            broken += wrong[chances >= rule.threshold].mean() > 0.05
    assert broken / runs <= three_standard_errors(0.05, runs)
