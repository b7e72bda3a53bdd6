"""Distances between probes, what is tolerated, and a planted truth: noise is tolerated, another model is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from brise.gateway.remote import probe as probes
from brise.gateway.remote.probe import PROMPTS, Probe, ProbedToken

NUM_WORDS = 50


def probe_of(logits: np.ndarray, noise: float, seed: int) -> Probe:
    """A server whose logits move by `noise` nats from request to request; four tokens an answer, the five best."""
    draws = np.random.default_rng(seed)
    answers = []
    for row in logits:
        answer = []
        for place in row:
            moved = place + draws.normal(0, noise, place.shape)
            logprobs = moved - np.log(np.exp(moved).sum())
            best = np.argsort(-logprobs)[:probes.NUM_TOP]
            answer.append(ProbedToken(str(best[0]), {str(each): float(logprobs[each]) for each in best}))
        answers.append(tuple(answer))
    return Probe(tuple(answers))


def logits_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (len(PROMPTS), probes.NUM_TOKENS, NUM_WORDS))


def test_the_same_probe_has_no_distance_and_another_model_nearly_all() -> None:
    one = probe_of(logits_of(1), 0.0, 1)
    assert probes.distance(one, one) == 0
    assert probes.distance(one, probe_of(logits_of(2), 0.0, 1)) > 0.3


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_rounding_is_tolerated_and_another_model_is_not(noise: float) -> None:
    """0.03 nats is what bfloat16 does to logits; a model that is trained on moves them by more."""
    logits = logits_of(3)
    first = [probe_of(logits, noise, seed) for seed in range(probes.ROUNDS)]
    steady = probes.steadiness(first)
    later = [probes.distance(first[0], probe_of(logits, noise, 100 + seed)) for seed in range(50)]
    assert max(later) <= steady.tolerance <= probes.CEILING and steady.is_steady
    trained = logits + np.random.default_rng(9).normal(0, 0.5, logits.shape)
    assert probes.distance(first[0], probe_of(trained, noise, 1)) > steady.tolerance


def test_a_server_whose_probes_differ_by_more_than_is_tolerated_is_not_steady() -> None:
    logits = logits_of(4)
    assert not probes.steadiness([probe_of(logits, 2.0, seed) for seed in range(3)]).is_steady


def test_what_stands_behind_another_token_is_not_compared() -> None:
    """Both are conditioned on different texts there."""
    def answer(first: float, second: str) -> tuple[ProbedToken, ...]:
        token = ("a", {"a": math.log(first), "b": math.log(1 - first)})
        return (ProbedToken("a" if first > 0.5 else "b", token[1]), ProbedToken(second, {second: -0.01}))

    one, other = (Probe((answer(first, second),) * len(PROMPTS)) for first, second in ((0.51, "x"), (0.49, "y")))
    assert probes.distance(one, other) == pytest.approx(0.02)


def test_a_token_that_is_not_shown_is_no_rarer_than_the_rarest_shown() -> None:
    one = Probe(((ProbedToken("a", {"a": math.log(0.6), "b": math.log(0.1)}),),) * len(PROMPTS))
    other = Probe(((ProbedToken("a", {"a": math.log(0.6), "c": math.log(0.12)}),),) * len(PROMPTS))
    assert probes.distance(one, other) == pytest.approx(0.01)


def test_texts_are_compared_where_there_are_no_log_probabilities() -> None:
    one, other = Probe(texts=("a",) * 16), Probe(texts=("a",) * 14 + ("b",) * 2)
    assert probes.distance(one, other) == 2 / 16 and probes.distance(one, probe_of(logits_of(1), 0, 1)) == 1
    assert probes.steadiness([one, one, one]).tolerance == 1.5 / 16


def test_a_probe_is_read_as_it_was_written() -> None:
    one = probe_of(logits_of(5), 0.0, 1)
    assert probes.distance(one, probes.from_body(one.to_body())) < 1e-3
    assert probes.from_body(Probe(texts=("a", "b")).to_body()) == Probe(texts=("a", "b"))
    with pytest.raises(ValueError, match="cannot be read"):
        probes.from_body({"tokens": [[1]]})
