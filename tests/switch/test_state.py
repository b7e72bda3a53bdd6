"""The state of a switch is what the ledger says, and only that."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.errors import StoreError
from brise.switch import state as switch
from brise.switch.state import TaskState, due, fold
from tests.switch.ledger_lines import Lines, audit, certified, switched


def state_after(*lines: tuple[str, dict[str, Any]], task: str = "calls") -> TaskState:
    ledger = Lines()
    for kind, body in lines:
        ledger.append(kind, body)
    return fold(ledger.ledger()).tasks[task]


def audits(number: int, difference: float) -> list[tuple[str, dict[str, Any]]]:
    return [("audit", audit(difference))] * number


def test_a_switch_begins_and_ends() -> None:
    begun = state_after(("switch", switched(share=0.1)))
    assert begun.is_on and begun.share == 0.1 and begun.candidate == "small" and begun.forced == "a test"
    ended = state_after(("switch", switched()), ("back", {"task": "calls", "reason": "enough", "by": "user"}))
    assert not ended.is_on and ended.ended == "enough"
    again = state_after(("switch", switched()), ("back", {"task": "calls", "reason": "enough", "by": "user"}),
                        ("switch", switched(candidate="other")))
    assert again.is_on and again.candidate == "other" and again.audits == 0


def test_tasks_do_not_touch_each_other_and_foreign_lines_are_none_of_ours() -> None:
    lines = [("switch", switched()), ("switch", switched("other")), ("expired", {"rows": 3}),
             ("back", {"task": "other", "reason": "no", "by": "user"}), ("step", {"task": "unknown", "share": 1.0})]
    assert state_after(*lines).is_on
    assert not state_after(*lines, task="other").is_on


def test_folding_in_two_parts_is_folding_at_once() -> None:
    ledger = Lines()
    for kind, body in [("switch", switched()), *audits(40, 0.0), ("raise", {"task": "calls"}), *audits(10, -1.0)]:
        ledger.append(kind, body)
    for cut in (0, 1, 41, 45):
        half = fold(ledger.entries[:cut])
        assert fold(ledger.ledger(half.number), half) == fold(ledger.entries)


def test_an_alarm_switches_back_from_that_audit_on() -> None:
    lines = [("switch", switched()), *audits(40, 0.0)]
    assert state_after(*lines).is_on
    rung = state_after(*lines, *audits(40, -1.0))
    assert rung.ended is None and not rung.is_on
    action = due(rung, 1000.0)
    assert action is not None and action.kind == "back" and "alarm" in action.body["reason"]
    ended = state_after(*lines, *audits(40, -1.0), (action.kind, dict(action.body)))
    assert due(ended, 1000.0) is None and not ended.is_on


def test_early_evidence_keeps_surer_answers_only_until_it_is_gone() -> None:
    lines = [("switch", switched())]
    while due(state_after(*lines), 1000.0) is None:
        lines += audits(1, -1.0)
    action = due(state_after(*lines), 1000.0)
    assert action is not None and action.kind == "tighten"
    tight = state_after(*lines, (action.kind, dict(action.body)))
    assert tight.is_tight and tight.is_on and tight.audit_probability == 0.5 and due(tight, 1000.0) is None
    calm = state_after(*lines, (action.kind, dict(action.body)), *audits(switch.RAISED_UNITS, 0.0))
    assert not calm.is_tight and calm.audit_probability == 0.05


def test_an_expired_certificate_ends_the_switch() -> None:
    state = state_after(("switch", switched(certificate=certified())))
    assert due(state, 1999.0) is None
    action = due(state, 2000.0)
    assert action is not None and action.kind == "void" and "expired" in action.body["reason"]


def test_steps_go_up_only_while_audits_are_fine() -> None:
    auto = switched(share=0.01, auto=True)
    assert due(state_after(("switch", auto), *audits(29, 0.0)), 0.0) is None
    assert "29 answers were audited" in str(state_after(("switch", auto), *audits(29, 0.0)).why_not_up())
    action = due(state_after(("switch", auto), *audits(30, 0.0)), 0.0)
    assert action is not None and action.kind == "step" and action.body["share"] == 0.1
    bad = state_after(("switch", auto), *audits(28, 0.0), *audits(2, -1.0))
    assert due(bad, 0.0) is None and "-6.7 points, -5.0 is tolerated" in str(bad.why_not_up())
    stepped = state_after(("switch", auto), *audits(30, 0.0), (action.kind, dict(action.body)))
    assert stepped.share == 0.1 and stepped.tally.count == 0 and stepped.audits == 30
    assert due(state_after(("switch", switched(auto=True)), *audits(30, 0.0)), 0.0) is None, "100 % is the last step"


def test_audits_are_as_many_at_a_small_share() -> None:
    chances = [state_after(("switch", switched(share=share))).audit_probability for share in switch.SHARES]
    assert chances == [0.5, 0.5, 0.1, 0.05]


def test_a_line_that_cannot_be_read_is_named() -> None:
    with pytest.raises(StoreError, match="line 2 of the ledger, 'audit'"):
        state_after(("switch", switched()), ("audit", audit(-3.0)))
    with pytest.raises(StoreError, match="line 1 of the ledger, 'switch'"):
        state_after(("switch", {"task": "calls"}))


@pytest.mark.parametrize("fields", [{"probability": 0}, {"probability": 1e-320}, {"probability": 2},
                                    {"probability": "nan"}, {"difference": 10**400}],
                         ids=["zero", "of infinite weight", "over one", "no number", "huge"])
def test_numbers_that_no_audit_has_are_no_state(fields: dict[str, object]) -> None:
    with pytest.raises(StoreError, match="line 2 of the ledger, 'audit'"):
        state_after(("switch", switched()), ("audit", audit(0.0) | fields))


def test_a_gateway_goes_on_behind_such_a_line_with_all_switches_ended() -> None:
    ledger, state = Lines(), switch.Switches()
    for kind, body in (("switch", switched()), ("audit", audit(-3.0)), ("switch", switched("other"))):
        state = switch.next_state_or_ended(state, ledger.append(kind, body))
    assert state.tasks["calls"].ended == "line 2 of the ledger cannot be read" and state.tasks["other"].is_on


def test_two_gateways_may_write_the_same_line() -> None:
    auto = [("switch", switched(share=0.01, auto=True)), *audits(30, 0.0)]
    action = due(state_after(*auto), 0.0)
    assert action is not None
    step = (action.kind, dict(action.body))
    twice = state_after(*auto, step, *audits(5, 0.0), step)
    assert twice.share == 0.1 and twice.tally.count == 5, "the second one changes nothing"
    begun_anew = state_after(*auto, ("back", {"task": "calls", "reason": "enough", "by": "user"}),
                             ("switch", switched(share=0.01)), step)
    assert begun_anew.share == 0.01


LINES = st.one_of(
    st.builds(lambda d, p: ("audit", audit(d, probability=p)), st.sampled_from([-1.0, -0.5, 0.0, 1.0]),
              st.sampled_from([0.05, 0.5, 1.0])),
    st.sampled_from([("step", {"task": "calls", "share": share, "reason": "", "by": "user"})
                     for share in switch.SHARES]),
    st.sampled_from([(kind, {"task": "calls", "reason": kind, "by": "gateway"})
                     for kind in ("raise", "tighten", "back", "void", "unheard of")]),
    st.just(("switch", switched())))


@given(st.lists(LINES, max_size=60))
def test_whatever_the_lines_are_what_ended_stays_ended_and_probabilities_are_some(
        lines: list[tuple[str, dict[str, Any]]]) -> None:
    ledger = Lines()
    ledger.append("switch", switched())
    state, ended = fold(ledger.ledger()), False
    for kind, body in lines:
        state = switch.next_state(state, ledger.append(kind, body))
        task = state.tasks["calls"]
        ended = kind != "switch" and (ended or kind in ("back", "void"))
        assert (task.ended is not None) is ended and 0 < task.audit_probability <= 1
        assert not (task.is_on and task.alarm.rings) and (due(task, 0.0) is None or not ended)
    assert fold(ledger.ledger()) == state
