"""The recommendation: which rule decides, on planted facts."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
