"""Which roll-out is for a device, and when a trial ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brise.fleet import trial
from brise.fleet.bundle import Bundle
from brise.fleet.install import Installation
from brise.fleet.install_state import STAGED, InstalledBundle, InstallState
from brise.fleet.local_gate import GateResult
from brise.fleet.node import PollSchedule
from brise.fleet.offers import Forgotten, OfferedRollout, TrialTerms
from brise.fleet.sources import Source
from brise.fleet.strict_json import canonical
from brise.fleet.trial import RequestCount, TrialSignals, judge
from brise.fleet.trust import Offer
from brise.fleet.update import UpdateParts, Updates
from brise.switch.rule import to_body
from tests.fleet.bundles import bundle
from tests.page.test_traffic import RULE

NOW = 1000.0


def digest(number: int) -> str:
    return f"{number:064x}"


def rollout(number: int, **changes: Any) -> OfferedRollout:
    made = OfferedRollout(f"r{number}", digest(number), 1.0, "running", "salt", 0.0, 1e9)
    return replace(made, **changes)


def updates(folder: Path, current: int | None = None, previous: int | None = None) -> Updates:
    """A device that has these bundles."""
    named = [None if one is None else InstalledBundle(slot, digest(one), "tickets", one, f"r{one}")
             for one, slot in ((current, "a"), (previous, "b"))]
    folder.mkdir(exist_ok=True)
    (folder / "state.json").write_bytes(canonical(InstallState(named[0], named[1])))
    for one in named:
        if one is not None:
            (folder / one.slot).mkdir()
    installation = Installation(folder, lambda: NOW)
    return Updates(UpdateParts("device", installation, lambda installed, made: GateResult((), ()),
                               lambda attempt, made: TrialSignals(), lambda: True, lambda: NOW, lambda text: None))


@pytest.mark.parametrize(("current", "offered", "wanted"), [
    (None, [], None), (None, [rollout(1)], 1), (1, [rollout(1)], None), (1, [rollout(1), rollout(2)], 2),
    (2, [rollout(1), rollout(2)], None),  # an older roll-out that still runs is no way back
    (1, [rollout(2, state="paused")], None), (1, [rollout(2, state="halted")], None),
    (None, [rollout(1, state="complete")], None), (1, [rollout(2, share=0.0)], None),
    (1, [rollout(2, not_before_s=NOW + 1)], None), (1, [rollout(2, deadline_s=NOW - 1)], None),
    (None, [rollout(1), rollout(2, state="halted")], 1), (3, [rollout(3, state="back", back_to=digest(1))], 1)])
def test_the_roll_out_that_is_installed(current: int | None, offered: list[OfferedRollout], wanted: int | None,
                                        tmp_path: Path) -> None:
    found = updates(tmp_path / "bundles", current).wanted(offered)
    assert (None if found is None else found.bundle) == (None if wanted is None else digest(wanted))


def test_what_went_back_is_not_tried_again_by_the_same_roll_out(tmp_path: Path) -> None:
    made = updates(tmp_path / "bundles", 2, previous=1)
    made.act(Offer((rollout(2, state="back"),), {}, Forgotten(), NOW), _Nowhere())
    state = made._installation.state
    assert state.current is not None and state.current.version == 1
    assert made.wanted([rollout(2)]) is None
    assert made.wanted([rollout(2, rollout="again")]) is not None


class _Nowhere:
    """A repository of which nothing is to be fetched."""

    def bundle(self, digest: str) -> Bundle:
        raise AssertionError("nothing is fetched")

    def fetch_bundle(self, bundle: Bundle, folder: Path, sources: Sequence[Source] = ()) -> None:
        raise AssertionError("nothing is fetched")

    def drop_incoming(self) -> None:
        raise AssertionError("nothing is fetched")


VETOED = bundle(task="calls", rule=to_body(replace(RULE, task="calls")))  # whose rule vetoed nothing of 500


@pytest.mark.parametrize(("signals", "elapsed_s", "passed", "against"), [
    (TrialSignals(requests=9), 0.0, False, None), (TrialSignals(requests=10), 0.0, True, None),
    (TrialSignals(), 7200.0, True, None),
    (TrialSignals(requests=10, taken_back="alarm"), 7200.0, False, "the gateway took it back: alarm"),
    (TrialSignals(requests=10, crashes=3), 0.0, False, "its server ended by itself 3 times"),
    (TrialSignals(requests=10, failed=3), 0.0, False, "3 of 10 answers failed in the engine"),
    (TrialSignals(requests=1000, failed=3), 0.0, True, None),
    (TrialSignals(requests=10, judged=40, vetoed=8), 0.0, False, "8 of 40 answers were vetoed"),
    (TrialSignals(requests=10, judged=40, vetoed=1), 0.0, True, None)])
def test_when_a_trial_ends(signals: TrialSignals, elapsed_s: float, passed: bool, against: str | None) -> None:
    verdict = judge(signals, TrialTerms(10, 2.0), elapsed_s, VETOED)
    assert verdict.is_passed is passed
    assert (verdict.against or "").startswith(against or "") and (verdict.against is None) == (against is None)


def test_requests_are_counted_over_servers_that_come_and_go() -> None:
    def metrics(good: int, bad: int) -> str:
        return (f'brise_requests_total{{endpoint="/v1/chat/completions",status="200"}} {good}.0\n'
                f'brise_requests_total{{endpoint="/v1/chat/completions",status="500"}} {bad}.0\n'
                'brise_requests_total{endpoint="/metrics",status="200"} 99.0\n')
    count = RequestCount(5)
    for good, bad in ((3, 0), (4, 1), (0, 0), (2, 1)):
        count.saw(metrics(good, bad))
    assert (count.requests, count.failed) == (5 + 5 + 3, 2)
    assert trial.counted("nothing") == (0, 0)


@pytest.mark.parametrize(("status", "counts"), [
    (200, (3, 0)), (500, (3, 3)), (400, (0, 0)), (415, (0, 0)), (503, (0, 0))])
def test_a_trial_counts_no_request_that_was_refused(status: int, counts: tuple[int, int]) -> None:
    metrics = f'brise_requests_total{{endpoint="/v1/chat/completions",status="{status}"}} 3.0\n'
    assert trial.counted(metrics) == counts


def test_polls_spread_out_and_slow_down_while_they_fail() -> None:
    draws = iter([0.5, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    schedule = PollSchedule(300.0, 0.1, lambda: next(draws))
    schedule.begin(0.0)
    assert schedule.next_s == 15.0  # of a tenth of the period
    waits = []
    for is_fine in (True, True, False, False, False, False, True):
        schedule.done(0.0, is_fine=is_fine)
        waits.append(schedule.next_s)
    assert waits == [270.0, 330.0, 600.0, 1200.0, 2400.0, 2400.0, 300.0]


def test_an_update_that_was_cut_before_its_folder_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    made, offered = bundle(adapter=()), rollout(3)
    installation = Installation(folder, lambda: NOW)
    installation.prepare(made)
    installation.fetching.mkdir()
    installation.fetched(made, offered)
    assert Installation(folder, lambda: NOW).state.attempt is None
    installation = Installation(folder, lambda: NOW)
    installation.fetched(made, offered)
    installation.stage(made)
    attempt = Installation(folder, lambda: NOW).state.attempt
    assert attempt is not None and attempt.state == STAGED
