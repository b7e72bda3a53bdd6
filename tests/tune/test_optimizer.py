"""AdamW beside torch's own, and with 8-bit moments beside itself."""

from __future__ import annotations

import math

import pytest
import torch

from brise.errors import CheckpointError
from brise.tune.adamw_state import BLOCK, encode, state_bytes, values
from brise.tune.optimizer import AdamW, clip_gradients

SIZES = {"a": (40, 128), "b": (128, 40), "norm": (64,), "big": (1200, 1000)}  # the last one in two pieces


def parameters(seed: int = 0) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SIZES.items()}


def gradient(parameter: torch.Tensor, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step * 1000 + parameter.numel())
    return torch.randn(parameter.shape, generator=generator) * 10.0 ** -(step % 5)


def test_float32_equals_torch() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = AdamW(ours, weight_decay=0.1)
    judge = torch.optim.AdamW(theirs.values(), lr=1.0, weight_decay=0.1, foreach=False, fused=False)
    for step in range(12):
        for mine, other in zip(ours.values(), theirs.values(), strict=True):
            mine.grad, other.grad = gradient(mine, step), gradient(mine, step)
        judge.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimizer.step(0.01 / (step + 1))
        judge.step()
    for name in SIZES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-6, atol=2e-7)


def test_a_parameter_without_gradient_stays() -> None:
    ours = parameters()
    before = ours["a"].detach().clone()
    ours["b"].grad = torch.ones(SIZES["b"])
    AdamW(ours, weight_decay=0.5).step(0.1)
    assert torch.equal(ours["a"], before)


def regression(bits: int, steps: int = 400) -> float:
    """Distance from a planted matrix whose columns matter by factors up to 30; the inputs are noisy batches."""
    generator = torch.Generator().manual_seed(3)
    planted = torch.randn(64, 96, generator=generator)
    scales = torch.logspace(-1.5, 0, 96)
    weight = torch.nn.Parameter(torch.zeros(64, 96))
    optimizer = AdamW({"w": weight}, bits=bits)  # type: ignore[arg-type]
    for step in range(steps):
        x = torch.randn(32, 96, generator=generator) * scales
        ((x @ (weight - planted).t()).square().mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step(0.05 * (1 - step / steps))
        optimizer.zero_grad()
    return float((weight - planted).detach().square().mean())


def test_8_bit_moments_find_the_planted_matrix_as_float32_does() -> None:
    exact, rounded = regression(32), regression(8)
    assert exact < 0.01 and rounded < 0.01 + 1.2 * exact


def test_8_bit_states_take_a_quarter() -> None:
    small, whole = AdamW(parameters(), bits=8), AdamW(parameters())
    assert small.state_bytes == sum(state_bytes(math.prod(shape), 8) for shape in SIZES.values())
    assert whole.state_bytes == sum(state_bytes(math.prod(shape), 32) for shape in SIZES.values())
    assert small.state_bytes < 0.26 * whole.state_bytes


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest_two_values_and_right_on_average(signed: bool) -> None:
    table = values(signed=signed)
    assert len(table) == 256 and torch.equal(table, table.sort().values) and float(table[-1]) == 1.0
    x = torch.linspace(0.003, 1.0, BLOCK).repeat(400)
    codes, scales = encode(x, table, torch.Generator().manual_seed(0))
    back = table[codes.int()].view(400, BLOCK) * scales[:, None]
    assert float((back.mean(0) / x[:BLOCK] - 1).abs().max()) < 0.01
    assert float((back / x[:BLOCK] - 1).abs().max()) < 0.2


def test_a_small_second_moment_never_becomes_nothing() -> None:
    x = torch.cat([torch.ones(1), torch.full((BLOCK - 2,), 1e-20), torch.zeros(1)])
    codes, _ = encode(x, values(signed=False), torch.Generator().manual_seed(0))
    assert int(codes[0]) == 255 and int(codes[1:-1].min()) == 1 and int(codes[-1]) == 0


def test_the_second_moment_follows_gradients_that_grow_slowly() -> None:
    weights = {bits: torch.nn.Parameter(torch.zeros(64, 64)) for bits in (8, 32)}
    optimizers = {bits: AdamW({"w": weight}, bits=bits) for bits, weight in weights.items()}  # type: ignore[arg-type]
    sizes = torch.linspace(0.2, 1.0, 64 * 64).view(64, 64)
    for step in range(400):
        for bits, weight in weights.items():
            weight.grad = sizes * (1.0 + 3.0 * step / 400)
            optimizers[bits].step(0.0)
    state = optimizers[8].tensors()
    root = values(signed=False)[state["w.root"].int()] * state["w.root_scales"].repeat_interleave(BLOCK)
    assert float((root / optimizers[32].tensors()["w.square"].sqrt()).log().mean().abs()) < 0.01


@pytest.mark.parametrize("bits", [8, 32])
def test_a_loaded_optimiser_goes_on_to_the_same_bits(bits: int) -> None:
    straight, first = parameters(), parameters()
    optimizers = [AdamW(which, bits=bits, seed=5) for which in (straight, first)]  # type: ignore[arg-type]

    def run(which: dict[str, torch.nn.Parameter], optimizer: AdamW, steps: range) -> None:
        for step in steps:
            for parameter in which.values():
                parameter.grad = gradient(parameter, step)
            optimizer.step(0.01)

    run(straight, optimizers[0], range(6))
    run(first, optimizers[1], range(3))
    resumed = AdamW(first, bits=bits, seed=5)  # type: ignore[arg-type]
    resumed.load({name: tensor.clone() for name, tensor in optimizers[1].tensors().items()}, optimizers[1].num_steps)
    run(first, resumed, range(3, 6))
    assert all(torch.equal(straight[name], first[name]) for name in SIZES)


def test_another_optimisers_state_is_refused_by_name() -> None:
    optimizer = AdamW(parameters())
    with pytest.raises(CheckpointError, match="a.mean"):
        optimizer.load(AdamW(parameters(), bits=8).tensors(), 1)
    wrong = optimizer.tensors() | {"b.mean": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"b.mean.*\(3,\).*\(5120,\)"):
        optimizer.load(wrong, 1)


def test_clipping_is_torchs() -> None:
    ours, theirs = parameters(), parameters()
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        mine.grad, other.grad = gradient(mine, 1), gradient(mine, 1)
    norm = clip_gradients(ours.values(), 1.0)
    assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)), rel=1e-5)
    for name in SIZES:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, rtol=1e-5, atol=0)


def test_a_norm_that_is_not_finite_is_told_and_changes_nothing() -> None:
    ours = parameters()
    ours["a"].grad = torch.full(SIZES["a"], math.inf)
    ours["b"].grad = torch.ones(SIZES["b"])
    assert not math.isfinite(clip_gradients(ours.values(), 1.0))
    assert torch.equal(ours["b"].grad, torch.ones(SIZES["b"]))
