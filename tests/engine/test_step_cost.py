"""The cost of a step is learned from times, whatever disturbs them, and equal times give equal answers."""

from __future__ import annotations

import random

import pytest

from brise.engine.step_cost import StepCost, StepLoad, load_of, pair_tokens_of
from brise.models.config import Config
from brise.models.rope import Rope

FIXED_S, TOKEN_S, PAIR_S = 0.028, 0.005, 1.2e-6  # about those of a 1.5B on two cores
PAIR_TOKENS = PAIR_S / TOKEN_S


def true_s(load: StepLoad) -> float:
    return FIXED_S + TOKEN_S * load.tokens + PAIR_S * load.pairs


def learned(loads: list[StepLoad], noise: random.Random | None = None) -> StepCost:
    """A cost after these steps. With `noise`, one in four takes up to ten times as long, the others up to 5 % more."""
    cost = StepCost(PAIR_TOKENS)
    for load in loads:
        factor = 1.0
        if noise is not None:
            factor = noise.uniform(1, 10) if noise.random() < 0.25 else noise.uniform(1, 1.05)
        cost.record(load, true_s(load) * factor)
    return cost


def mixed_loads(count: int, chance: random.Random) -> list[StepLoad]:
    """Decodes of 1 to 16 answers at many depths, with and without a chunk of a prompt."""
    loads = []
    for _ in range(count):
        load = StepLoad()
        for _ in range(chance.randint(1, 16)):
            load = load.plus(1, chance.randint(10, 3000))
        loads.append(load.plus(chance.choice([0, 0, 5, 20, 60, 200, 480]), chance.randint(0, 2000)))
    return loads


def test_before_any_step_nothing_is_known_and_nothing_costs() -> None:
    cost = StepCost(PAIR_TOKENS)
    assert cost.seconds(StepLoad(512, 10**6)) == 0
    assert cost.most_tokens(StepLoad(), 0, 512, 0.1) == 512


@pytest.mark.parametrize("first", [StepLoad(1, 1), StepLoad(1, 40), StepLoad(100, 5050), StepLoad(512, 131328)])
def test_one_step_gives_a_guess_of_all_others(first: StepLoad) -> None:
    cost = learned([first])
    for tokens in (1, 8, 30, 100, 512):
        load = StepLoad().plus(tokens, 0)
        assert 0.6 < cost.seconds(load) / true_s(load) < 1.6


@pytest.mark.parametrize("seed", range(4))
def test_noise_moves_estimates_by_a_few_per_cent(seed: int) -> None:
    chance = random.Random(seed)
    loads = mixed_loads(400, chance)
    cost = learned(loads, noise=chance)
    ratios = [cost.seconds(load) / true_s(load) for load in loads]
    assert sum(0.85 < ratio < 1.2 for ratio in ratios) >= 0.9 * len(ratios)


def test_the_depth_is_learned_where_the_sizes_say_something_else() -> None:
    cost = StepCost(PAIR_TOKENS / 4)
    for load in mixed_loads(400, random.Random(1)):
        cost.record(load, true_s(load))
    assert cost.pair_seconds == pytest.approx(PAIR_S, rel=0.2)


def test_a_machine_that_becomes_slower_shows_after_six_steps() -> None:
    load = StepLoad().plus(8, 100)
    cost = learned([load] * 20)
    for _ in range(5):
        cost.record(load, 3 * true_s(load))
    assert cost.seconds(load) == pytest.approx(true_s(load), rel=0.01)
    cost.record(load, 3 * true_s(load))
    assert cost.seconds(load) == pytest.approx(3 * true_s(load), rel=0.01)


def test_a_count_that_is_slower_than_a_larger_one_is_kept_apart() -> None:
    cost = StepCost(PAIR_TOKENS)
    for tokens, seconds in ((1, 0.031), (2, 0.038), (3, 0.047), (4, 0.042)):
        cost.record(StepLoad(tokens, 0), seconds)
    assert cost.seconds(StepLoad(3, 0)) > cost.seconds(StepLoad(4, 0))


@pytest.mark.parametrize("start", [0, 500, 8000])
def test_the_most_tokens_are_those_that_stay_within_the_limit(start: int) -> None:
    cost = learned(mixed_loads(400, random.Random(3)))
    decodes = load_of([(100, 101)] * 4)
    tokens = cost.most_tokens(decodes, start, 512, 0.15)
    assert cost.seconds(decodes.plus(tokens, start)) <= 0.15 < cost.seconds(decodes.plus(tokens + 1, start))
    assert cost.most_tokens(decodes, start, 512, 0.01) == 0
    assert cost.most_tokens(decodes, start, 512, 100.0) == 512


def test_equal_steps_give_equal_estimates() -> None:
    loads = mixed_loads(100, random.Random(5))
    first, second = learned(loads), learned(loads)
    assert [first.seconds(load) for load in loads] == [second.seconds(load) for load in loads]


def test_the_pairs_of_a_chunk_are_those_of_causal_attention() -> None:
    assert load_of([(3, 6)]) == StepLoad(3, 4 + 5 + 6)
    assert StepLoad().plus(1, 0).plus(2, 7) == StepLoad(3, 1 + 8 + 9)


@pytest.mark.parametrize(("layers", "width", "heads", "kv_heads", "head_dim", "ffn", "measured"), [
    (30, 576, 9, 3, 64, 1536, 1 / 1000), (28, 1536, 12, 2, 128, 8960, 1 / 4000)])
def test_the_planned_cost_of_a_pair_is_near_the_measured_one(layers: int, width: int, heads: int, kv_heads: int,
                                                             head_dim: int, ffn: int, measured: float) -> None:
    config = Config(family="llama", vocab_size=1000, width=width, num_layers=layers, num_heads=heads,
                    num_kv_heads=kv_heads, head_dim=head_dim, ffn_width=ffn, norm_eps=1e-5,
                    rope=Rope(1e4, head_dim, "half"), max_context=4096)
    assert measured / 1.5 < pair_tokens_of(config) < measured * 1.5
