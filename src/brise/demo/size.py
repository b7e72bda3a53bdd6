"""Sizes of the demo, chosen so that it takes minutes on two cores and that a good small model can pass."""

from __future__ import annotations

from dataclasses import dataclass, field

from brise.demo.stand_in import Nature


@dataclass(frozen=True)
class Size:
    """Conversations of each stretch, and the recipe of the training.

    In the stretches behind the training every fourth request has a phrasing or values that it never saw.
    """

    train: int = 1900
    calibrate: int = 280
    prove: int = 720
    first_step: int = 40  # conversations at a share of 1 %
    half: int = 160  # at 50 %, until the audits allow 100 %
    whole: int = 80  # at 100 %
    outage: int = 50  # while the large model is down
    after: int = 12  # when it is back
    held_out: float = 0.25
    parallel: int = 64  # cars at a time while nothing else is to be done: they wait for the large model, not for us
    steps: int = 230
    batch_size: int = 8
    rank: int = 16
    learning_rate: float = 2e-3
    eval_rows: int = 40
    parity_rows: int = 12
    delta: float = 5.0  # points that the small model may be worse
    risk: float = 5.0  # percent of kept answers that may be wrong
    audit: float = 50.0  # percent of kept answers, so that minutes are enough to take a step
    settle_s: float = 10.0  # a conversation is over after so long
    nature: Nature = field(default_factory=lambda: Nature(seed=1))


FULL = Size()
# To see that everything works: too little training and traffic to prove anything.
QUICK = Size(train=220, calibrate=95, prove=50, first_step=6, half=12, whole=10, outage=16, after=4, steps=16,
             eval_rows=12, parity_rows=4, settle_s=3.0, nature=Nature(seed=1, median_s=0.3))
