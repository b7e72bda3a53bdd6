"""The recommendation: which rule decides, on planted facts."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from brise.cli.main import parse
from brise.report.advice import Facts, Kept, Proven, Switched, advise

GOOD = Proven("promote", 0.02, 0.001, -0.01, 0.012)
BAD = Proven("not good enough", 0.02, -0.07, -0.09, -0.05, "quality: refuted")
OPEN = Proven("undecided", 0.02, -0.01, -0.03, 0.01, more_units=900)
BASE = Facts(500, saving_small=0.001)


@pytest.mark.parametrize(("facts", "choice", "says"), [
    (replace(BASE, conversations=12), "not yet", "12 conversations"),
    (BASE, "not yet", "nothing was proven"),
    (replace(BASE, proven=GOOD), "switch", "at most 2 points worse"),
    (replace(BASE, proven=replace(GOOD, is_expired=True)), "not yet", "expired"),
    (replace(BASE, proven=GOOD, saving_small=-0.002), "stay", "saves nothing"),
    (replace(BASE, proven=GOOD, saving_small=None), "switch", "not known"),
    (replace(BASE, proven=BAD), "stay", "not good enough"),
    (replace(BASE, proven=BAD, kept=Kept(0.7, 0.05)), "cascade", "70 %"),
    (replace(BASE, proven=BAD, kept=Kept(0.7, 0.05), saving_cascade=-0.1), "stay", "cascade would save nothing"),
    (replace(BASE, proven=BAD, kept=Kept(0.0, 0.05)), "stay", "No share"),
    (replace(BASE, proven=OPEN), "not yet", "900 more"),
    (replace(BASE, proven=replace(BAD, classical="TF-IDF + linear")), "classical", "cheapest"),
    (replace(BASE, proven=GOOD, switched=Switched("mine", 1.0, 80)), "keep", "80 of its"),
    (replace(BASE, proven=GOOD, switched=Switched("mine", 0.1, 80)), "keep", "may answer more"),
    (replace(BASE, switched=Switched("mine", 1.0, 5, is_forced=True)), "keep", "forced"),
    (replace(BASE, proven=GOOD, switched=Switched("mine", 1.0, 80, ended="alarm: worse")), "stay", "alarm: worse"),
    (replace(BASE, proven=GOOD, switched=Switched("mine", 1.0, 80), saving_cascade=-0.01), "stay", "saves nothing"),
])
def test_the_first_rule_that_holds_decides(facts: Facts, choice: str, says: str) -> None:
    advice = advise(facts)
    assert advice.choice == choice
    assert says in " ".join((advice.headline, *advice.reasons))


def test_staying_is_said_in_the_headline() -> None:
    for facts in (replace(BASE, proven=BAD), BASE, replace(BASE, proven=OPEN)):
        assert advise(facts).headline.startswith("Stay on the large model")


def test_what_was_forced_against_the_evidence_goes_back() -> None:
    forced = Switched("mine", 0.5, 5, is_forced=True, against=("mine: NOT GOOD ENOUGH (line 3, 2026-01-01)",))
    advice = advise(replace(BASE, switched=forced, task="calls"))
    assert advice.choice == "stay" and advice.next == "brise switch calls --back"
    assert "NOT GOOD ENOUGH (line 3" in " ".join(advice.reasons)
    later = replace(BASE, switched=replace(forced, against=()), against=("mine: alarm (line 9, 2026-01-02)",))
    assert "alarm (line 9" in " ".join(advise(later).reasons), "what came after it was forced counts as well"
    assert advise(replace(later, switched=replace(forced, is_forced=False))).choice == "keep"


@pytest.mark.parametrize(("facts", "command"), [
    (BASE, "brise prove --task 'my task' --plan-only --store /a/b"),
    (replace(BASE, proven=GOOD), "brise switch 'my task' --share 1 --store /a/b"),
    (replace(BASE, proven=replace(GOOD, is_expired=True)), "brise prove --task 'my task' --store /a/b"),
    (replace(BASE, proven=OPEN), "brise prove --task 'my task' --store /a/b"),
    (replace(BASE, proven=BAD), "brise log export --task 'my task' --out my_task.jsonl --store /a/b && brise tune "
                                "my_task.jsonl --model smollm2"),
    (replace(BASE, proven=BAD, kept=Kept(0.7, 0.05, "mine")),
     "brise switch 'my task' --small-model mine --share 1 --force --reason 'brise cascade certified a rule' "
     "--store /a/b"),
    (replace(BASE, proven=GOOD, switched=Switched("mine", 0.1, 80)), "brise switch 'my task' --share 50 --store /a/b"),
    (replace(BASE, proven=GOOD, switched=Switched("mine", 1.0, 8, ended="alarm: worse")),
     "brise prove --task 'my task' --store /a/b")])
def test_the_next_command_is_complete(facts: Facts, command: str) -> None:
    advice = advise(replace(facts, task="my task", store="/a/b"))
    assert advice.next == command
    for each in command.split(" && "):
        assert parse(shlex.split(each)[1:]).command in ("prove", "switch", "log", "tune")
