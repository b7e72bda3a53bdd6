"""Experts that stay in the file are suggested where a model does not fit."""

from __future__ import annotations

from dataclasses import replace

from brise.backends.native.backend import NativeBackend
from brise.backends.vulkan.backend import VulkanBackend
from brise.memory import serving_plan as plans
from brise.memory import split_plan, suggestions
from brise.memory.model_header import ModelHeader
from brise.memory.process import Vocabulary
from brise.memory.serving_plan import MemoryRequest
from brise.models.config import Config, Experts, Latent
from brise.models.ops import DeviceMemory
from brise.models.rope import Rope
from brise.models.weights import FeedForward, LatentAttention, Layer, Mixture, Stack, Stored, Weights
from tests.backends.vulkan.driver import require_driver


def weight(*shape: int) -> Stored:
    return Stored("Q8_0" if len(shape) > 1 else "F32", shape, lambda first, last: None)


def stack(count: int, *shape: int) -> Stack:
    return Stack(tuple(weight(*shape) for _ in range(count)))


def mixture_of_experts() -> ModelHeader:
    """Two layers, 64 experts of 1024 x 2048 numbers each: 855 MB of experts, next to nothing else."""
    config = Config(
        family="mistral4", vocab_size=512, width=1024, num_layers=2, num_heads=4, num_kv_heads=1, head_dim=96,
        ffn_width=2048, norm_eps=1e-6, rope=Rope(1e4, 32, "interleaved"), max_context=2048,
        latent=Latent(query_rank=128, rank=64, nope_dim=64, value_dim=64), experts=Experts(64, 2, 2048, 1024))
    attention = LatentAttention(
        wq_a=weight(128, 1024), q_a_norm=weight(128), wq_b=weight(384, 128), wkv_a=weight(96, 1024),
        kv_a_norm=weight(64), wk_b=stack(4, 64, 64), wv_b=stack(4, 64, 64), wo=weight(1024, 256))
    layers = tuple(Layer(weight(1024), attention, weight(1024), Mixture(
        weight(64, 1024), stack(64, 2048, 1024), stack(64, 1024, 2048), stack(64, 2048, 1024),
        FeedForward(weight(1024, 1024), weight(1024, 1024), weight(1024, 1024)))) for _ in range(config.num_layers))
    return ModelHeader("mixture", config, Weights(weight(512, 1024), layers, weight(1024), weight(512, 1024)),
                       Vocabulary(512, 0, 0))


def test_what_is_left_is_offered_to_the_experts_and_fits() -> None:
    header, backend = mixture_of_experts(), NativeBackend(1)
    request = MemoryRequest(limit=500_000_000, context=512, serves=False)
    plan = plans.make(header, request, backend)
    assert not plan.fits
    offered = [suggestion for suggestion in suggestions.suggest(header, request, plan, backend)
               if suggestion.experts is not None]
    assert len(offered) == 1 and "--experts" in offered[0].text(plan)
    kept = plans.make(header, replace(request, expert_bytes=offered[0].experts), backend)
    assert kept.fits and kept.total_bytes == offered[0].total_bytes


def test_a_card_is_offered_experts_in_the_host_s_memory() -> None:
    require_driver()
    header, backend = mixture_of_experts(), VulkanBackend("", NativeBackend(1))
    backend.device = DeviceMemory("a card (vulkan:0)", is_shared=False)
    for ram in (None, 900_000_000):
        request = MemoryRequest(limit=500_000_000, ram=ram, context=512, serves=False)
        plan = split_plan.make(header, request, backend)
        offered = [suggestion for suggestion in suggestions.suggest(header, request, plan, backend)
                   if suggestion.experts is not None]
        assert not plan.fits and len(offered) == 1
        kept = split_plan.make(header, replace(request, expert_bytes=offered[0].experts), backend)
        assert kept.fits and kept.device is not None and not kept.device.is_split
        assert ram is None or ram - 2_000_000 < kept.device.host_bytes(kept.num_pages) <= ram


def test_room_for_less_than_one_expert_is_no_offer() -> None:
    header, backend = mixture_of_experts(), NativeBackend(1)
    request = MemoryRequest(context=512, serves=False, expert_bytes=0)
    least = plans.make(header, request, backend).total_bytes
    request = replace(request, limit=least + 5_000_000, expert_bytes=None)  # an expert takes 6.7 MB
    offered = suggestions.suggest(header, request, plans.make(header, request, backend), backend)
    assert all(suggestion.experts is None for suggestion in offered)
