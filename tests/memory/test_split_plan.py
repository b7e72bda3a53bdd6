"""A model under two limits, for a GPU and for the host: how it is split, what it takes on both sides, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import brise
from brise.backends import open_planner, split_planner
from brise.backends.native.backend import NativeBackend
from brise.backends.native.recorder import matrix_handle
from brise.backends.vulkan import backend as vulkan
from brise.backends.vulkan.backend import HostPlaced, VulkanBackend
from brise.backends.vulkan.split import SplitBackend
from brise.backends.vulkan.split_recorder import SplitCache
from brise.cli.main import main
from brise.engine.engine import Engine
from brise.engine.request import Request, Sampling
from brise.errors import MemoryLimitError, RequestError, UnsupportedError
from brise.files.digests import Located
from brise.files.sizes import TwoLimits, memory_text, parse_memory
from brise.memory import limit, process, serving_plan, split_plan
from brise.memory.model_header import ModelHeader, read_header
from brise.memory.opening import MAX_ADAPTERS, MAX_RANK, EngineOptions, OpeningProgress, open_engine
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.memory.suggestions import suggest
from brise.models.ops import DeviceMemory, LayerSplit
from brise.models.weights import Weight, weights_with_paths
from tests.backends.vulkan.driver import require_driver
from tests.checkpoint.make_gguf import write_tiny

MIB = 1 << 20
RAM = 64 << 30


class Card(VulkanBackend):
    """The device as if it had memory of its own."""

    def __init__(self, selector: str = "", native: NativeBackend | None = None) -> None:
        super().__init__(selector, native or NativeBackend(1))
        self.device = DeviceMemory("a card (vulkan:0)", is_shared=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_driver()
    return write_tiny(tmp_path_factory.mktemp("llama") / "tiny.gguf", "llama", format="Q8_0")


@pytest.fixture(scope="module")
def header(model: Path) -> ModelHeader:
    return read_header(model, "tiny")


def most_for_one_layer(header: ModelHeader, context: int = 64, adapter_slots: int = 0) -> int:
    """A limit of the card's memory that holds one of the two layers."""
    card = split_planner(Card(), LayerSplit(2, 1, header.weights.output is header.weights.tok_embeddings))
    request = MemoryRequest(context=context, adapter_slots=adapter_slots, adapter_rank=MAX_RANK)
    return serving_plan.make(header, request, card).total_bytes


def test_as_many_layers_lie_on_the_gpu_as_its_limit_holds(header: ModelHeader) -> None:
    one, card = most_for_one_layer(header), Card()
    split = split_plan.make(header, MemoryRequest(one, 64, ram=RAM), card)
    assert split.fits and split.gpu_layers == 1 and split.total_bytes == one
    assert split.device is not None and split.device.num_layers == 2
    whole = split_plan.make(header, MemoryRequest(1 << 30, 64, ram=RAM), card)
    assert whole.fits and whole.gpu_layers is None and whole.total_bytes > one
    assert whole.device is not None and "weights" not in {term.name for term in whole.device.host_terms(4)}


def test_without_a_context_both_limits_bound_it(header: ModelHeader) -> None:
    request = MemoryRequest(most_for_one_layer(header, header.config.max_context), ram=RAM)
    plan = split_plan.make(header, request, Card())
    assert plan.fits and plan.gpu_layers == 1 and plan.context == header.config.max_context
    assert plan.device is not None
    tight = replace(request, ram=plan.device.host_bytes(2))  # the host holds two pages of 16 tokens
    short = split_plan.make(header, tight, Card())
    assert short.fits and short.context == 32
    assert not split_plan.make(header, replace(tight, context=48), Card()).fits


def test_what_neither_limit_holds_is_refused_by_both_and_by_what_would_fit(model: Path, header: ModelHeader,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "open_planner", lambda threads, device: Card())
    one = most_for_one_layer(header)
    with pytest.raises(MemoryLimitError, match=rf"1 of 2 layers on a card .*\(vram={one}B") as refused:
        limit.plan_within(model, "tiny", MemoryRequest(one, 64, ram=1000), device="vulkan")
    assert refused.value.limit == 1000 and refused.value.needed > 100_000_000
    assert f"--memory vram={one}B,ram=" in str(refused.value.hint) and "(1 of 2 layers on the GPU)" in str(
        refused.value.hint)
    with pytest.raises(MemoryLimitError, match="1 of 2 layers on a card .*vram=1kB, ram=8GB") as refused:
        limit.plan_within(model, "tiny", MemoryRequest(1000, 64, ram=8 * 10**9), device="vulkan")
    assert refused.value.limit == 1000


def test_a_model_that_one_limit_does_not_hold_gets_two_as_one_more_way(header: ModelHeader) -> None:
    request = MemoryRequest(most_for_one_layer(header), 64)
    plan = split_plan.make(header, request, Card())
    assert not plan.fits
    offered = [each for each in suggest(header, request, plan, Card()) if each.memory is not None]
    assert len(offered) == 1 and offered[0].gpu_layers == 1
    memory = offered[0].memory
    assert memory is not None
    assert f"--memory {memory_text(memory)} (1 of 2 layers on the GPU)" in offered[0].text(plan)
    assert split_plan.make(header, replace(request, limit=memory.vram, ram=memory.ram), Card()).fits


def test_two_limits_are_refused_by_name_on_shared_memory_and_on_the_cpu(header: ModelHeader) -> None:
    shared = VulkanBackend("", NativeBackend(1))
    shared.device = DeviceMemory("Orin (vulkan:0)", is_shared=True)
    with pytest.raises(UnsupportedError, match=r"Orin \(vulkan:0\) shares the host's memory, so that one limit bounds"):
        split_plan.make(header, MemoryRequest(10**9, 64, ram=10**9), shared)
    with pytest.raises(UnsupportedError, match="the model runs on the CPU"):
        split_plan.make(header, MemoryRequest(10**9, 64, ram=10**9), open_planner(1))


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_plan_is_what_is_allocated_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *,
                                                     is_tied: bool) -> None:
    require_driver()
    path = write_tiny(tmp_path / "tiny.gguf", "llama", format="Q8_0", tied=is_tied)
    monkeypatch.setattr(vulkan, "VulkanBackend", Card)
    header = read_header(path, "tiny")
    assert (header.weights.output is header.weights.tok_embeddings) == is_tied
    plans: list[ServingPlan] = []
    memory = TwoLimits(most_for_one_layer(header, 512, MAX_ADAPTERS), RAM)
    engine = open_engine(Located("tiny", path), EngineOptions(
        device="vulkan", memory=memory, context=512, parallel=2, threads=1), OpeningProgress(planned=plans.append))
    answer(engine)
    (plan,), backend = plans, engine.model.backend
    assert isinstance(backend, SplitBackend) and plan.device is not None
    device = backend.gpu.handle
    assert 0 <= plan.device.device_bytes(plan.num_pages) - (device.allocated - device.allocated_for_host) <= MIB
    cache, work = engine._cache, engine._runner.work_bytes  # type: ignore[attr-defined]
    assert isinstance(cache, SplitCache)
    planned = {term.name: term.nbytes for term in plan.device.host_terms(plan.num_pages)}
    assert planned["cache"] == cache.host.nbytes
    assert planned["weights"] == sum(host_bytes(weight) for _, weight in weights_with_paths(engine.model.weights))
    assert 0 <= planned["work space"] - work.host <= MIB


@pytest.mark.parametrize("family", ["deepseek2", "mixtral"])
def test_two_limits_bound_a_card_and_the_experts_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           family: str) -> None:
    require_driver()
    path = write_tiny(tmp_path / "tiny.gguf", family, format="Q8_0", tied=False)
    monkeypatch.setattr(vulkan, "VulkanBackend", Card)
    plans: list[ServingPlan] = []
    engine = open_engine(Located("tiny", path), EngineOptions(
        device="vulkan", memory=TwoLimits(1 << 30, RAM), context=512, parallel=2, threads=1, experts=10**6),
        OpeningProgress(planned=plans.append))
    answer(engine)
    (plan,), backend, work = plans, engine.model.backend, engine._runner.work_bytes  # type: ignore[attr-defined]
    assert isinstance(backend, Card) and plan.device is not None
    device = backend.handle
    assert 0 <= plan.device.device_bytes(plan.num_pages) - (device.allocated - device.allocated_for_host) <= MIB
    planned = {term.name: term.nbytes for term in plan.device.host_terms(plan.num_pages)}
    assert planned["experts"] > 10**6 and 0 <= planned["work space"] - work.host <= MIB
    with pytest.raises(MemoryLimitError, match="experts 1000.0 MB|on the host"):
        open_engine(Located("tiny", path), EngineOptions(
            device="vulkan", memory=TwoLimits(1 << 30, 10**9), context=512, threads=1, experts=10**9))


def host_bytes(weight: Weight) -> int:
    return matrix_handle(weight).nbytes if isinstance(weight, HostPlaced) else 0


def answer(engine: Engine) -> None:
    engine.accept(engine.prepare(Request(tuple(range(5)) * 100, max_tokens=4, sampling=Sampling(temperature=0))))
    while engine.has_work:
        engine.step()


def test_the_command_shows_layers_and_both_totals(model: Path, header: ModelHeader, monkeypatch: pytest.MonkeyPatch,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(vulkan, "VulkanBackend", Card)
    memory = f"vram={most_for_one_layer(header)},ram=8GB"
    command = ["plan", str(model), "--device", "vulkan", "--memory", memory, "--context", "64"]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "layers on the GPU: 1 of 2; on the host" in shown and "of 8.00 GB on the host, fits with" in shown
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["device"]["layers"], document["device"]["of_layers"]) == (1, 2)
    assert document["host"]["memory"] == 8 * 10**9 > document["host"]["total"] > document["host"]["parts"]["weights"]
    assert main([*command[:-3], "vram=1kB,ram=1kB", "--context", "64"]) == 1


def test_more_on_the_host_than_was_planned_is_refused_after_loading(model: Path, header: ModelHeader,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vulkan, "VulkanBackend", Card)
    monkeypatch.setattr(process, "resident_bytes", lambda: 8 * 10**9)
    memory = TwoLimits(most_for_one_layer(header, 512, MAX_ADAPTERS), 8 * 10**9)
    with pytest.raises(MemoryLimitError, match=r"8000\.0 MB of tiny measured on the host after loading") as refused:
        open_engine(Located("tiny", model), EngineOptions(device="vulkan", memory=memory, context=512, parallel=2))
    assert refused.value.needed > refused.value.limit == 8 * 10**9


def test_python_takes_two_limits_and_refuses_them_where_memory_is_shared(model: Path) -> None:
    if not VulkanBackend("", NativeBackend(1)).device.is_shared:
        pytest.skip("the GPU of this machine has memory of its own")
    with pytest.raises(UnsupportedError, match="shares the host's memory"):
        brise.load(model, memory="vram=1GB,ram=1GB", device="vulkan")
    with pytest.raises(RequestError, match=r"memory is 'vram=1GB': a size such as 4GB, or two"):
        brise.load(model, memory="vram=1GB", device="vulkan")


def test_the_cpu_that_takes_over_has_the_limit_of_the_host() -> None:
    options = EngineOptions(device="auto", memory=TwoLimits(4 * 10**9, 8 * 10**9))
    assert (options.on_cpu.device, options.on_cpu.memory) == ("cpu", 8 * 10**9)


def test_limits_are_read_and_written() -> None:
    assert parse_memory("4GB") == 4 * 10**9
    assert parse_memory("ram=8GiB, vram=3.5GB") == TwoLimits(3_500_000_000, 8 << 30)
    assert memory_text(TwoLimits(3_500_000_000, 8 << 30)) == "vram=3500MB,ram=8GiB"
    for wrong in ("vram=4GB", "vram=4GB,vram=2GB", "vram=4GB,disk=2GB", "vram=,ram=2GB"):
        with pytest.raises(ValueError, match="is allowed"):
            parse_memory(wrong)
