"""Training on a small GPU: what is planned is what the trainer takes of the device, counted tensor by tensor.

There is no GPU here. The trainer runs on torch's device `meta`, whose tensors have sizes and no numbers, in its place;
numbers are compared on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from brise.backends.torch import weights as torch_weights
from brise.backends.torch.weights import Packed
from brise.data.example import EncodedRow
from brise.errors import MemoryLimitError
from brise.memory.training_plan import CONTEXT_BYTES, OFFLOADS, MemoryChoice, Offload, TrainingPlan, settle
from brise.models.config import Config
from brise.models.lora import is_end
from brise.models.rope import Rope
from brise.models.weights import (
    Attention,
    Dense,
    FeedForward,
    Layer,
    Lora,
    LowRank,
    Placed,
    Quant,
    Weight,
    Weights,
    place,
)
from brise.quant.formats import FORMATS
from brise.tune import adapters, losses, probe
from brise.tune.optimizer import clip_gradients
from brise.tune.packing import pack
from brise.tune.recipe import Recipe
from brise.tune.run_plan import EngineStages, Estimator, chosen
from brise.tune.train import HOST, ComputeOptions, Trainer

GB = 10**9
GPU = ComputeOptions(torch.device("cuda"), torch.bfloat16)
# Ministral 3 3B: its widths and its formats in Q4_0.
MINISTRAL = Config("mistral3", 131072, 3072, 26, 32, 8, 128, 9216, 1e-5, Rope(1e6, 128, "interleaved"), 262144)
SMALL = replace(MINISTRAL, vocab_size=512, width=64, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16,
                ffn_width=128, rope=Rope(1e4, 16, "interleaved"))
QLORA = MemoryChoice(2048, checkpointing=False, base_storage="packed", bits=32, rank=16)


def blocks(rows: int, cols: int, format: str = "Q4_0", *, seed: int | None = None) -> Quant:
    """Small random numbers; without a seed zeros that take no memory."""
    shape = rows, FORMATS[format].row_bytes(cols)
    if seed is None:
        return Quant(format, (rows, cols), np.broadcast_to(np.uint8(0), shape))
    data = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    size = FORMATS[format].block_bytes
    data.reshape(-1, size)[:, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    return Quant(format, (rows, cols), data)


def model(config: Config, *, seed: int | None = None, head: str = "Q6_K") -> Weights:
    width, wide, q, kv = config.width, config.ffn_width, config.num_heads, config.num_kv_heads
    norm = Dense("F32", (width,), np.ones(width, np.float32))
    seeds = iter(range(10**6)) if seed is None else iter(range(seed, seed + 10**6))

    def matrix(rows: int, cols: int) -> Quant:
        return blocks(rows, cols, seed=None if seed is None else next(seeds))

    layers = tuple(Layer(
        norm, Attention(matrix(q * config.head_dim, width), matrix(kv * config.head_dim, width),
                        matrix(kv * config.head_dim, width), matrix(width, q * config.head_dim)),
        norm, FeedForward(matrix(wide, width), matrix(width, wide), matrix(wide, width)))
        for _ in range(config.num_layers))
    table = blocks(config.vocab_size, width, head, seed=None if seed is None else next(seeds))
    return Weights(table, layers, norm, table)


def learned(count: int, length: int, vocab_size: int) -> list[EncodedRow]:
    """Rows without a common beginning, all of whose tokens are learned: the most that a microbatch can take."""
    rng = np.random.default_rng(7)
    return [EncodedRow(rng.integers(0, vocab_size, length).astype(np.int32), np.arange(length) > 0, f"rows:{index}")
            for index in range(count)]


def estimator(config: Config, weights: Weights, compute: ComputeOptions = GPU) -> Estimator:
    return Estimator("m", config, weights, Recipe(), compute, EngineStages(10**8), None, 256)


def planned(count: Estimator, limit: int) -> TrainingPlan:
    return settle(QLORA, may_shrink=True, may_checkpoint=True, longest=256, count=replace(count, limit=limit),
                  offloads=OFFLOADS)


def counted(config: Config, weights: Weights, plan: TrainingPlan, compute: ComputeOptions = GPU,
            length: int = 256, num_steps: int = 2) -> int:
    """The most bytes of tensors on the device, from the first weight on, in steps of the trainer."""
    recipe, compute = chosen(Recipe(), probe.on_stand_in(compute), plan.choice)
    device = compute.device

    def put(name: str, weight: Weight) -> Weight:
        home = HOST if "ends" in compute.offload and is_end(name) else device
        return probe._empty(weight, replace(compute, device=home), "packed")

    def steps() -> None:
        rows = learned(plan.choice.num_tokens // length, length, config.vocab_size)
        trained = adapters.new(place(weights, put), recipe)
        trainer = Trainer(config, trained, recipe, compute, rows)
        for _ in range(num_steps):
            trainer._loss(trainer._ops(trains=True), pack(rows)).backward()  # type: ignore[no-untyped-call]
            if device.type == "cpu":
                clip_gradients(trained.parameters.values(), 1.0)
            trainer.optimizer.step(1e-3)
            trainer.optimizer.zero_grad()

    return probe.peak_of(steps, device)


def test_a_3b_is_trained_in_4_gb_of_video_memory() -> None:
    """At full size: 26 layers, 2048 tokens, all of them learned."""
    weights = model(MINISTRAL)
    plan = planned(estimator(MINISTRAL, weights), 4 * GB)
    assert plan.choice.num_tokens == 2048 and plan.choice.checkpointing
    peak = counted(MINISTRAL, weights, plan, num_steps=1) + CONTEXT_BYTES
    assert 0.85 * plan.total_bytes <= peak <= plan.total_bytes <= 4 * GB


@pytest.mark.parametrize("offload", OFFLOADS)
def test_what_is_on_the_host_is_planned_and_counted(offload: Offload) -> None:
    config = replace(MINISTRAL, num_layers=2)
    weights = model(config)
    plan = estimator(config, weights)(replace(QLORA, num_tokens=512, checkpointing=True, offload=offload))
    peak = counted(config, weights, plan) + CONTEXT_BYTES
    assert 0.8 * plan.total_bytes <= peak <= plan.total_bytes
    assert {name for name, _, _ in plan.host_rows} - {"process", "loading"} == {
        {"activations": "inputs", "optimizer": "moments", "ends": "ends"}[part] for part in offload}


def test_what_is_counted_in_place_of_a_gpu_is_what_the_cpu_takes() -> None:
    """The same choice, really computed: 90 % of the bytes are equal, the rest is how blocks are decoded."""
    config = replace(SMALL, width=256, ffn_width=512, num_heads=4, head_dim=64, rope=Rope(1e4, 64, "interleaved"))
    weights = model(config, seed=1)
    on_cpu, on_gpu = ComputeOptions(dtype=torch.float32), replace(GPU, dtype=torch.float32)
    plan = estimator(config, weights, on_gpu)(replace(QLORA, num_tokens=512, checkpointing=True))
    found = [counted(config, weights, plan, compute, 32) for compute in (on_cpu, on_gpu)]
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_a_limit_moves_to_the_host_what_costs_least() -> None:
    """What a step copies for it grows from part to part; a smaller microbatch comes after all of them."""
    count = estimator(MINISTRAL, model(MINISTRAL))
    plans = [planned(count, limit) for limit in (16 * GB, 8 * GB, 4 * GB, 3 * GB)]
    choices = [(plan.choice.num_tokens, plan.choice.checkpointing, plan.choice.offload) for plan in plans]
    assert choices == [(2048, False, ()), (2048, True, ()), (2048, True, ("activations",)),
                       (1024, True, OFFLOADS[-1])]
    with pytest.raises(MemoryLimitError, match="more than the limit of 2000"):
        planned(count, 2 * GB)


def stepped(weights: Weights, choice: MemoryChoice) -> Mapping[str, torch.Tensor]:
    recipe, compute = chosen(Recipe(rank=4, targets=("q_proj", "down_proj", "lm_head", "embed_tokens"), batch_size=4),
                             ComputeOptions(), choice)
    placed = place(weights, lambda name, weight: torch_weights.place(name, weight, HOST, torch.float32, "packed"))
    trainer = Trainer(SMALL, adapters.new(placed, recipe), recipe, compute, learned(8, 20, SMALL.vocab_size))
    for _ in range(2):
        trainer.run_step()
    return trainer.trained.parameters


def test_what_lies_on_the_host_changes_no_bit() -> None:
    weights = model(SMALL, seed=5, head="Q8_0")
    near, away = (stepped(weights, replace(QLORA, checkpointing=True, offload=offload, rank=4))
                  for offload in (OFFLOADS[0], OFFLOADS[-1]))
    assert near.keys() == away.keys()
    assert all(torch.equal(near[name], away[name]) for name in near)


@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_head_in_parts_has_the_loss_and_the_gradients_of_a_whole_one(has_adapter: bool,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_weights, "BLOCK_NUMBERS", 64 * 100)  # six parts
    head = torch_weights.place("output", blocks(512, 64, "Q8_0", seed=2), HOST, torch.float64, "packed")
    assert isinstance(head, Placed) and isinstance(head.handle, Packed)
    whole = Placed(head.shape, torch_weights.numbers_of(head.handle, torch.float64, HOST))
    targets = torch.from_numpy(np.random.default_rng(1).integers(0, 512, 37))
    found = []
    for base in (head, whole):
        generator = torch.Generator().manual_seed(3)
        hidden, a, b = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
                        for shape in ((37, 64), (4, 64), (512, 4)))
        own: Weight = Lora(base, (LowRank(a, b, 0.5),)) if has_adapter else base
        loss = losses.cross_entropy(hidden, own, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        found.append([loss.detach(), hidden.grad, *([a.grad, b.grad] if has_adapter else [])])
    for part, expected in zip(*found, strict=True):
        torch.testing.assert_close(part, expected, rtol=1e-10, atol=1e-10)
