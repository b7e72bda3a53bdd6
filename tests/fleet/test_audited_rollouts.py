"""What `brise audit` says of roll-outs: the same state and evidence again, and where a line states other evidence."""

from __future__ import annotations

from typing import Any

from brise.fleet import audited_rollouts
from brise.fleet.advance import next_step
from tests.fleet.ledgers import Chain


def halted() -> tuple[Chain, dict[str, Any]]:
    """A roll-out that is due to halt, and the body of the line that does so."""
    chain = Chain()
    chain.step()
    chain.took(began=chain.within, failed=chain.within[:7])
    (action,) = next_step(chain.progress, chain.order, chain.now_s).actions
    return chain, {name: value for name, value in action.body.items() if name != "rollout"}


def test_evidence_is_computed_again() -> None:
    chain, body = halted()
    chain.append("rollout-halt", **body)
    (found,) = audited_rollouts.audited_json(chain.lines)
    assert (found["state"], found["failed"], found["wrong"]) == ("halted", 7, [])
    assert found["harm"] >= 20


def test_evidence_that_the_lines_do_not_give_is_named() -> None:
    chain, body = halted()
    chain.append("rollout-halt", **{**body, "harm": 1e9})
    (found,) = audited_rollouts.audited_json(chain.lines)
    assert "the lines before it give" in found["wrong"][0]


def test_a_halt_without_evidence_is_named() -> None:
    chain = Chain()
    chain.step()
    chain.append("rollout-halt", user="hub", reason="so", harm=1.0, safety=1.0)
    (found,) = audited_rollouts.audited_json(chain.lines)
    assert found["wrong"] == ["[the lines before it do not give the evidence to halt]"]


def test_a_ledger_without_roll_outs_has_nothing_to_show() -> None:
    assert audited_rollouts.audited([]) == ()
