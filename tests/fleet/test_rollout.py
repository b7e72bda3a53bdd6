"""Roll-outs: the fold over the ledger, exact and nested stages, and what follows from what devices reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from brise.errors import FleetError, StoreError
from brise.files.digests import hash_draw
from brise.fleet import advance, rollout
from brise.fleet.offers import read_rollouts, rollouts_json
from brise.stats.failure_rate import FailureTest
from brise.switch import state as switch
from brise.traffic import ledger
from tests.fleet.ledgers import TERMS, Chain


def test_stages_are_exact_and_a_larger_one_holds_a_smaller_one() -> None:
    order, before = advance.in_order("s", [f"d{number}" for number in range(1000)]), set[str]()
    for size in (1, 10, 50, 200, 1000):
        share = order.share_of(size)
        within = {name for name in order.names if hash_draw(f"s:{name}") < share}
        assert len(within) == size
        assert set(order.within(share)) == within >= before
        before = within
    assert order.share_of(1000) == 1.0


def test_a_good_bundle_goes_from_stage_to_stage_until_all_have_it() -> None:
    chain = Chain()
    sizes = list[int]()
    while chain.progress.is_open:
        chain.step()
        sizes.append(len(chain.within))
        new = [name for name in chain.within if name not in chain.progress.devices]
        chain.took(began=new, committed=new)
    assert (sizes[0], sizes[-1]) == (100, 10_000)
    assert {500, 2000} <= set(sizes)
    assert (chain.progress.state, chain.progress.reason, chain.progress.unknown) == ("complete", "complete", 0)


def test_nothing_advances_before_devices_have_ended() -> None:
    chain = Chain()
    chain.step()
    chain.took(began=chain.within, committed=chain.within[:60])
    chain.now_s += 3600
    assert chain.step().waits == "40 devices have begun and not ended"


def test_devices_that_never_began_are_unknown_and_hold_a_stage_back() -> None:
    chain = Chain()
    chain.step()
    chain.took(began=chain.within[:55], committed=chain.within[:55])
    assert "45 devices have not begun; it waits" in chain.step().waits
    chain.now_s += 1000
    assert chain.step().waits == "45 of 100 devices have not begun, at most 42 may be unknown"


@pytest.mark.parametrize(("share", "number", "most"), [(0.2, 1, 0), (1 / 3, 3, 1), (1 / 3, 20, 10), (0.0, 100, 0),
                                                        (1 / 3, 10_000, 3427), (0.8, 10, 8)])
def test_small_stages_may_have_more_unknown_by_chance(share: float, number: int, most: int) -> None:
    assert advance.most_unknown(share, number) == most


def test_a_roll_out_is_complete_but_for_those_that_never_began() -> None:
    chain = Chain(replace(TERMS, stages=(1.0,)))
    chain.step()
    chain.took(began=chain.within[:8000], committed=chain.within[:8000])
    chain.now_s += 1000
    chain.step()
    assert (chain.progress.state, chain.progress.reason) == ("complete", "complete but for 2000 unknown")
    assert chain.progress.count("committed") == 8000


def test_a_device_that_began_and_is_silent_past_its_deadline_has_failed() -> None:
    chain = Chain()
    chain.step()
    chain.took(began=chain.within, committed=chain.within[1:])
    chain.now_s += 7201
    chain.step()
    assert chain.progress.devices[chain.within[0]].reason == "silent past its deadline"
    chain.took(committed=[chain.within[0]])
    assert chain.progress.count("failed") == 1


def test_a_commit_that_is_undone_later_is_a_failure() -> None:
    chain = Chain()
    chain.step()
    chain.took(began=["d1"], committed=["d1"])
    chain.took(failed=["d1"])
    assert (chain.progress.count("committed"), chain.progress.count("failed")) == (0, 1)


def test_a_bad_bundle_halts_and_stays_halted() -> None:
    chain = Chain()
    chain.step()
    chain.took(began=chain.within, failed=chain.within[:7])
    chain.step()
    assert chain.progress.state == "halted"
    assert "7 of 100 devices that began have failed" in chain.progress.reason
    assert chain.step().actions == ()


def test_three_devices_have_no_statistic_and_a_failure_asks_a_person() -> None:
    chain = Chain(devices=3)
    chain.step()
    first = chain.within
    assert len(first) == 1
    chain.took(began=first, failed=first)
    chain.step()
    assert chain.progress.state == "paused"
    assert "there is no statistic with 3 devices: 181 that all succeed" in chain.progress.reason
    chain.append("rollout-resume", user="anna", reason="that robot has a broken disk")
    assert chain.step().actions[0].kind == "rollout-share"


def test_three_devices_go_one_by_one_and_the_hub_says_why() -> None:
    chain = Chain(devices=3)
    while chain.progress.is_open:
        chain.step()
        chain.took(began=chain.within, committed=chain.within)
    assert (chain.progress.state, chain.progress.count("committed")) == ("complete", 3)
    assert any("there is no statistic" in str(line.body.get("why")) for line in chain.lines)


def test_nobody_begins_before_the_time() -> None:
    chain = Chain(replace(TERMS, not_before_s=1060.0))
    assert chain.step().waits == "it begins in 60 s"
    chain.now_s = 1060.0
    assert len(chain.step().actions) == 1


def test_devices_are_told_what_the_fold_says() -> None:
    chain = Chain()
    chain.step()
    chain.append("fleet-forget", digests=["b" * 64], user="anna")
    chain.append("rollout-pause", user="anna", reason="lunch")
    offered = read_rollouts(rollouts_json(chain.state.offered()))
    (one,) = offered.rollouts
    assert (one.state, one.share, one.bundle, offered.forgotten.number) == ("paused", chain.progress.share, "a" * 64, 1)
    assert sum(map(one.has, chain.names)) == 100


def test_the_ledger_gives_the_same_state_again_and_switches_ignore_it() -> None:
    chain = Chain(devices=400)
    chain.step()
    chain.took(began=chain.within, committed=chain.within[1:], failed=chain.within[:1])
    chain.step()
    assert rollout.fold(chain.lines).rollouts["r1"] == chain.progress
    assert ledger.check_chain(chain.lines) is None
    assert switch.fold(chain.lines).tasks == {}


def test_a_line_that_cannot_be_read_is_named() -> None:
    chain = Chain()
    with pytest.raises(StoreError, match="line 2 of the ledger, 'rollout-share'"):
        chain.append("rollout-share", share="much")


@pytest.mark.parametrize("wrong", [
    {"bundle": "x"}, {"rollout": "a b"}, {"stages": (0.5, 0.5, 1.0)}, {"stages": (0.5,)}, {"stages": ()},
    {"stages": (-0.1, 1.0)}, {"most_unknown": 1.5}, {"deadline_s": 3600.0}, {"wait_s": float("nan")}])
def test_terms_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(FleetError):
        replace(TERMS, **wrong)


def test_the_steps_of_an_undecided_stage_grow_with_how_well_it_looks() -> None:
    sizes = []
    for failures in (0, 1, 2):
        chain = Chain(replace(TERMS, test=FailureTest(0.01, 0.015)))
        chain.step()
        within, failed = chain.within, chain.within[40::40][:failures]
        chain.took(began=within, committed=set(within) - set(failed), failed=failed)
        chain.step()
        sizes.append(len(chain.within))
    assert sizes[0] > sizes[1] >= sizes[2] > 100
