"""Which setting wins: the request's, the model's own, the usual one."""

from __future__ import annotations

import pytest

from brise.engine.request import Sampling
from brise.engine.sampling import resolve
from brise.text.inputs import PartialSampling

USUAL = Sampling(0.2, top_p=0.9, repetition_penalty=1.1, repeat_last_n=64, penalizes_prompt=False)
OWN = PartialSampling(0.6, 20, 0.95, repetition_penalty=1.05)


@pytest.mark.parametrize(("requested", "own", "expected"), [
    (PartialSampling(), PartialSampling(), USUAL),
    (PartialSampling(), OWN, Sampling(0.6, 20, 0.95, repetition_penalty=1.05)),
    (PartialSampling(temperature=1.0, top_k=0, seed=3), OWN, Sampling(1.0, 0, 0.95, repetition_penalty=1.05, seed=3)),
    (PartialSampling(repetition_penalty=1.0), OWN, Sampling(0.6, 20, 0.95)),
    (PartialSampling(), PartialSampling(top_k=40), Sampling(top_k=40)),
    (PartialSampling(), PartialSampling(repetition_penalty=1.2), Sampling(0.2, top_p=0.9, repetition_penalty=1.2)),
    (PartialSampling(repetition_penalty=1.3), PartialSampling(), Sampling(0.2, top_p=0.9, repetition_penalty=1.3)),
    (PartialSampling(temperature=0), OWN, Sampling(0.0)),
    (PartialSampling(temperature=0), PartialSampling(), Sampling(0)),
    (PartialSampling(temperature=0, repetition_penalty=1.3, logit_bias={1: 2.0}), OWN,
     Sampling(0, repetition_penalty=1.3, logit_bias={1: 2.0}))])
def test_the_request_wins_then_the_model_and_greedy_is_greedy(requested: PartialSampling, own: PartialSampling,
                                                              expected: Sampling) -> None:
    assert resolve(requested, own, USUAL) == expected
