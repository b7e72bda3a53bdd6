"""The plan of a model on a GPU: what lies there to 1 MiB, what its limit bounds, and what is said if less is free."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.backends import open_planner
from brise.backends.native.backend import NativeBackend
from brise.backends.vulkan.backend import HostPlaced, VulkanBackend
from brise.cli.main import main
from brise.engine import model as engine_model
from brise.engine.request import Request, Sampling
from brise.errors import DeviceMemoryError
from brise.files.digests import Located
from brise.memory import limit, serving_plan
from brise.memory.model_header import read_header
from brise.memory.opening import EngineOptions, OpeningProgress, open_engine
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.models.ops import DeviceMemory, Room
from brise.models.weights import weights_with_paths
from brise.text import images
from tests.backends.vulkan.driver import require_driver
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_vision_model import picture, write_seeing

MIB = 1 << 20


class Card(VulkanBackend):
    """The device as if it had memory of its own, of which `free` bytes are free."""

    def __init__(self, free: int) -> None:
        super().__init__("", NativeBackend(1))
        self.free, self.device = free, DeviceMemory("a card (vulkan:0)", is_shared=False)

    def available(self) -> Room:
        return Room(super().available().host, self.free)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_driver()
    return write_tiny(tmp_path_factory.mktemp("llama") / "tiny.gguf", "llama", format="Q8_0")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_driver()
    return write_seeing(tmp_path_factory.mktemp("seeing"))


def plan_of(model: Path, backend: VulkanBackend, **request: int) -> ServingPlan:
    return serving_plan.make(read_header(model, "tiny"), MemoryRequest(**request), backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "deepseek2", "mixtral"])
def test_the_plan_of_the_device_is_what_is_allocated_there(tmp_path: Path, family: str) -> None:
    require_driver()
    plans: list[ServingPlan] = []
    path = write_tiny(tmp_path / "tiny.gguf", family, format="Q8_0")
    engine = open_engine(Located("tiny", path), EngineOptions(
        device="vulkan", memory=16 << 30, context=512, parallel=2, threads=1), OpeningProgress(planned=plans.append))
    backend = engine.model.backend
    assert isinstance(backend, VulkanBackend)
    engine.accept(engine.prepare(Request(tuple(range(5)) * 100, max_tokens=4, sampling=Sampling(temperature=0))))
    while engine.has_work:
        engine.step()
    (plan,), taken = plans, backend.handle.allocated - backend.handle.allocated_for_host
    assert plan.device is not None
    assert 0 <= plan.device.device_bytes(plan.num_pages) - taken <= MIB


def test_the_plan_has_the_work_of_the_largest_image(seeing: Path) -> None:
    plans: list[ServingPlan] = []
    engine = open_engine(Located("tiny", seeing), EngineOptions(
        device="vulkan", memory=16 << 30, context=512, parallel=2, threads=1), OpeningProgress(planned=plans.append))
    backend, eyes = engine.model.backend, engine.model.vision
    assert isinstance(backend, VulkanBackend) and eyes is not None
    image = images.prepare(picture(width=80, height=80), eyes.settings, "image")
    prompt = (*engine.model.tokenizer.encode("the"), *image.tokens)
    request = Request(prompt, max_tokens=4, sampling=Sampling(temperature=0), images=(image,))
    engine.accept(engine.prepare(request))
    while engine.has_work:
        engine.step()
    engine.accept(engine.prepare(Request(tuple(range(5)) * 100, max_tokens=4, sampling=Sampling(temperature=0))))
    while engine.has_work:
        engine.step()
    (plan,), taken = plans, backend.handle.allocated - backend.handle.allocated_for_host
    assert plan.device is not None and plan.encodes_on_device
    assert 0 <= plan.device.device_bytes(plan.num_pages) - taken <= MIB


def test_images_are_encoded_on_the_host_of_a_card_that_has_no_room_for_it(
        seeing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    header, card = read_header(seeing, "tiny"), Card(1 << 30)
    roomy = limit.choose(header, MemoryRequest(1 << 30, 64), card)[0]
    least = roomy.total_bytes - MIB
    assert roomy.encodes_on_device and roomy.fits
    tight, chosen = limit.choose(header, MemoryRequest(least, 64), card)
    assert tight.fits and not tight.encodes_on_device and not chosen.encodes_on_device
    assert tight.device is not None and roomy.device is not None
    assert tight.device.device_bytes(4) + MIB < roomy.device.device_bytes(4)
    for module in (limit, engine_model):
        monkeypatch.setattr(module, "open_planner" if module is limit else "open_backend", lambda *_, **__: card)
    engine = open_engine(Located("tiny", seeing), EngineOptions(
        device="vulkan", memory=least, context=64, parallel=1, threads=1))
    eyes = engine.model.vision
    assert eyes is not None and all(isinstance(each, HostPlaced) for _, each in weights_with_paths(eyes.weights))
    assert main(["plan", str(seeing), "--device", "vulkan", "--context", "64", "--memory", str(least)]) == 0
    assert "images are encoded on the CPU" in " ".join(capsys.readouterr().out.split())


def test_a_limit_bounds_both_where_memory_is_shared(model: Path) -> None:
    cpu = serving_plan.make(read_header(model, "tiny"), MemoryRequest(context=64), open_planner(1))
    gpu = plan_of(model, VulkanBackend("", NativeBackend(1)), context=64)
    assert gpu.device is not None and not gpu.device.host_terms(gpu.num_pages)
    assert gpu.process_bytes > cpu.process_bytes and gpu.answers_bytes == cpu.answers_bytes
    assert gpu.total_bytes > gpu.device.device_bytes(gpu.num_pages) > gpu.weights_bytes + gpu.cache_bytes


def test_a_limit_bounds_the_memory_of_a_card_and_the_host_has_a_total_of_its_own(model: Path) -> None:
    plan = plan_of(model, Card(1 << 30), context=64, limit=1 << 30)
    assert plan.device is not None and plan.fits
    assert plan.total_bytes == plan.device.device_bytes(plan.num_pages)
    assert plan.process_bytes == plan.answers_bytes == 0
    host = {term.name: term.nbytes for term in plan.device.host_terms(plan.num_pages)}
    assert {"process", "requests", "staging", "logits"} <= set(host)
    assert plan.device.host_bytes(plan.num_pages) == sum(host.values())
    assert "on a card (vulkan:0), fits with" in serving_plan.headline(plan)


def test_less_that_is_free_than_was_promised_does_not_fit(model: Path) -> None:
    plan = plan_of(model, Card(100_000_000), context=64, limit=1_000_000_000)
    assert not plan.fits
    assert "does NOT fit; 1.00 GB were promised and only 100.0 MB are free" in serving_plan.headline(plan)
    without = plan_of(model, Card(1000), context=64)
    assert not without.fits and "only 1.0 kB are free" in serving_plan.headline(without)


def test_a_load_is_refused_where_less_is_free(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit, "open_planner", lambda threads, device: Card(100_000_000))
    with pytest.raises(DeviceMemoryError, match="only 100.0 MB are free") as refused:
        limit.plan_within(model, "tiny", MemoryRequest(1_000_000_000, 64), device="vulkan")
    assert (refused.value.asked, refused.value.free) == (1_000_000_000, 100_000_000)


def test_the_command_says_which_device_and_gives_both_totals(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = VulkanBackend("", NativeBackend(1)).device.label
    assert main(["plan", str(model), "--device", "vulkan", "--context", "64"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"on {label}" in shown and "layers on the GPU: 2 of 2" in shown
    assert main(["plan", str(model), "--device", "vulkan", "--context", "64", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["device"]["name"] == label and document["device"]["bytes"] > 0
    assert document["host"] == {"total": 0, "memory": None, "parts": {}}
    assert main(["plan", str(model), "--device", "vulkan", "--memory", "4000GB"]) == 1


@pytest.mark.parametrize("family", ["deepseek2", "mixtral"])
def test_experts_that_stay_in_the_file_take_the_host_s_memory_alone(tmp_path: Path, family: str) -> None:
    require_driver()
    path = write_tiny(tmp_path / "tiny.gguf", family, format="Q8_0")
    whole, kept = (plan_of(path, Card(64 << 30), context=512, **experts) for experts in ({}, {"expert_bytes": 10**6}))
    assert whole.device is not None and kept.device is not None
    experts = sum(part.nbytes for part in whole.parts if part.name == "experts")
    shared = sum(part.nbytes for part in kept.parts if part.name == "experts")
    assert whole.weights_bytes - kept.weights_bytes == experts - shared > 0
    assert kept.device.device_bytes(0) < whole.device.device_bytes(0)
    terms = {term.name: term.nbytes for term in kept.device.host_terms(0)}
    assert terms["experts"] > 10**6 and kept.experts_bytes == 0  # the limit of the card does not bound them


@pytest.mark.parametrize("family", ["deepseek2", "mixtral"])
def test_a_gpu_beside_experts_in_the_file_takes_what_was_planned(tmp_path: Path, family: str) -> None:
    require_driver()
    plans: list[ServingPlan] = []
    path = write_tiny(tmp_path / "tiny.gguf", family, format="Q8_0", tied=False)
    engine = open_engine(Located("tiny", path), EngineOptions(
        device="vulkan", memory=16 << 30, context=512, parallel=2, threads=1, experts=10**6),
        OpeningProgress(planned=plans.append))
    backend = engine.model.backend
    assert isinstance(backend, VulkanBackend)
    engine.accept(engine.prepare(Request(tuple(range(5)) * 100, max_tokens=4, sampling=Sampling(temperature=0))))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    (plan,), taken = plans, backend.handle.allocated - backend.handle.allocated_for_host
    assert deltas[-1].finish in ("length", "stop")
    assert plan.device is not None and 0 <= plan.device.device_bytes(plan.num_pages) - taken <= MIB


def test_auto_is_the_cpu_where_the_only_gpu_is_software(model: Path) -> None:
    if any(facts["type"] != "cpu" for facts in map(VulkanBackend.facts, [VulkanBackend("", NativeBackend(1))])):
        pytest.skip("this machine has a GPU")
    assert open_engine(Located("tiny", model), EngineOptions(device="auto", context=64)).model.device == "the CPU"
