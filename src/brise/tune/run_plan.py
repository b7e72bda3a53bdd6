"""The plan of a run: settings that fit into the memory limit, put together from what each part of the trainer takes.

Needs the extra `tune`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from brise import settings
from brise.backends import open_planner
from brise.backends.torch import attend
from brise.backends.torch.weights import BLOCK_NUMBERS
from brise.checkpoint.open import Checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_hf import plain_format
from brise.data.prepare import Dataset
from brise.errors import UnsupportedError
from brise.files.digests import Located
from brise.hub.locate import find_model
from brise.memory import process, serving_plan, training_plan
from brise.memory.model_header import ModelHeader, read_header
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.memory.training_plan import (
    CONTEXT_BYTES,
    OFFLOADS,
    BaseStorage,
    MemoryChoice,
    Offload,
    TrainingParts,
    TrainingPlan,
)
from brise.models.config import Config
from brise.models.lora import is_end, place_ends
from brise.models.weights import Weight, Weights, place
from brise.tune import pick_dtype, probe, row_images
from brise.tune.adamw_state import state_bytes
from brise.tune.distill import on_policy, student
from brise.tune.options import BATCH_TOKENS, TuneOptions
from brise.tune.parity import served as parity_served
from brise.tune.pick_dtype import Speed
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Plain
from brise.tune.train import ComputeOptions

# Arrays that live at one time while models are compared: of the logits of both, and of a layer's numbers.
_LOGITS, _HIDDEN = 12, 4
_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_READ_AHEAD = 32 << 20  # of the model's file, before its pages are let go
_FEATURES = 3  # arrays of a microbatch's image features: as they came, one row a token, and their sum with the tokens
_SCORES = 4  # float32 arrays of a block of attention: scores, their softmax, and the gradients of both


@dataclass(frozen=True)
class ResolvedOptions:
    """The options, completed by what was measured or recorded where they leave the choice open."""

    checkpoint: Checkpoint
    recipe: Recipe
    compute: ComputeOptions
    choice: MemoryChoice
    longest: int  # row
    may_shrink: bool
    may_checkpoint: bool
    speed: Speed | None  # None: nothing was measured
    images_bytes: int
    teaching_bytes: int
    round_prompts: int  # that the student answers at a time; 0: it answers none
    offloads: Sequence[Offload] = ((),)  # what may lie on the host of a GPU, the least first
    most_offload: Offload = ()  # and what could


def memory_in_use(device: torch.device) -> int:
    """Bytes of the device's memory in use."""
    return process.resident_bytes() if device.type == "cpu" else torch.cuda.memory_reserved(device) + CONTEXT_BYTES


def peak_memory(device: torch.device) -> int:
    """The most bytes in use at one time."""
    return process.peak_bytes() if device.type == "cpu" else torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES


def keep_within(device: torch.device, limit: int | None) -> None:
    """Lets torch take no more of a GPU than the limit leaves it: it raises OutOfMemoryError instead."""
    if device.type == "cuda" and limit is not None:
        whole = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0, limit - CONTEXT_BYTES) / whole), device)


def resolve(options: TuneOptions, checkpoint: Checkpoint, dataset: Dataset,
            recorded: Mapping[str, Plain]) -> ResolvedOptions:
    """The options of a run; `recorded` are the settings of the run that goes on."""
    device, rounds = _device(options), options.on_policy
    longest = max(len(row.tokens) for row in (*dataset.train, *dataset.held_out))
    if rounds is not None:
        longest = max(longest, on_policy.longest_row(dataset.train, rounds, checkpoint.config.max_context))
    measured = None
    name = options.dtype if options.dtype != "auto" else recorded.get("dtype")
    if name not in _DTYPES:
        if device.type == "cpu" or torch.cuda.is_available():
            measured = pick_dtype.measure(checkpoint.weights().layers[0], device)
        name = "bfloat16"  # of a dry run for a GPU that is not here
    dtype = measured.dtype if measured is not None else _DTYPES[str(name)]
    before = recorded.get("batch_tokens")
    tokens = options.batch_tokens or (before if type(before) is int else None)
    again = (recorded.get("checkpointing") if options.checkpointing == "auto"
             else options.checkpointing == "on")
    # Weights that are trained stay on the device.
    possible = ((),) if device.type == "cpu" else OFFLOADS[:-1] if options.method == "full" else OFFLOADS
    offloads = {"auto": possible, "none": ((),), "all": possible[-1:]}
    if options.offload == "all" and device.type == "cpu":
        raise UnsupportedError("--offload all needs a GPU, and this run is on the CPU",
                               hint="leave it out, or give --device cuda")
    storage: BaseStorage = "packed" if options.method == "qlora" else "dense"
    choice = MemoryChoice(tokens or max(BATCH_TOKENS, longest), again is True, storage,
                          8 if options.optimizer == "adamw8" else 32, 0 if options.method == "full" else options.rank)
    if choice.num_tokens < longest:
        less = "leave long rows out with --max-length"
        raise UnsupportedError(f"--batch-tokens is {choice.num_tokens}, the longest row has {longest} tokens",
                               hint=f"give at least {longest}, or {less if rounds is None else 'less --round-tokens'}")
    return ResolvedOptions(
        checkpoint, options.recipe(), ComputeOptions(device, dtype), choice, longest, may_shrink=tokens is None,
        may_checkpoint=options.checkpointing == "auto" and "checkpointing" not in recorded, speed=measured,
        images_bytes=row_images.planned_bytes(checkpoint, options.model, dataset, choice.num_tokens,
                                              torch.get_num_threads()),
        teaching_bytes=0 if options.teacher is None else _teaching_bytes(options.teacher.model),
        round_prompts=0 if rounds is None else rounds.prompts, offloads=offloads[options.offload],
        most_offload=possible[-1])


def settle(asked: ResolvedOptions, located: Located, limit: int | None, *, proves: bool) -> TrainingPlan:
    """The plan of the fastest settings that fit; MemoryLimitError if none do."""
    checkpoint, compute = asked.checkpoint, asked.compute
    weights = checkpoint.weights()
    # Once before the process is measured, so that what torch loads with its first computation is counted.
    probe.measure(checkpoint.config, weights, asked.recipe, compute, asked.choice.base_storage)
    resident = process.resident_bytes() + training_plan.LATER_BYTES
    proving = _proving_bytes(located, asked) if proves else 0
    answering = _answering_bytes(located, asked)
    is_gpu = compute.device.type == "cuda"
    if is_gpu and torch.cuda.is_available():
        free = torch.cuda.mem_get_info(compute.device)[0] + CONTEXT_BYTES  # the context is there by now
        limit = free if limit is None else min(limit, free)
    engine = EngineStages(resident, proving, asked.images_bytes, asked.teaching_bytes, answering)
    estimator = Estimator(located.name, checkpoint.config, weights, asked.recipe, compute, engine, limit, asked.longest)
    return training_plan.settle(asked.choice, may_shrink=asked.may_shrink, may_checkpoint=asked.may_checkpoint,
                                longest=asked.longest, count=estimator, offloads=asked.offloads,
                                most=asked.most_offload)


@dataclass(frozen=True)
class EngineStages:
    """Bytes of what is not training: the process, and what the engine does on the CPU before, between and after."""

    process: int
    proving: int = 0
    images: int = 0
    teaching: int = 0
    answering: int = 0


@dataclass
class Estimator:
    """Plans for a model of which only shapes and formats are known; each probe runs once."""

    name: str
    config: Config
    weights: Weights
    recipe: Recipe
    compute: ComputeOptions
    engine: EngineStages
    limit: int | None
    longest: int  # row
    _costs: dict[tuple[BaseStorage, bool, int, bool], probe.ActivationCosts] = field(default_factory=dict)
    _heads: dict[tuple[int, BaseStorage, bool], int] = field(default_factory=dict)

    def __call__(self, choice: MemoryChoice) -> TrainingPlan:
        """The plan of a choice."""
        recipe, compute = chosen(self.recipe, self.compute, choice)
        sizes = list(trained_sizes(self.weights, recipe))
        scores = min(attend.BLOCK_SCORES, self.config.num_heads * self.longest * choice.num_tokens)
        costs = self._probed(recipe, compute, choice)
        state = sum(state_bytes(size, 8 if choice.bits == 8 else 32) for size in sizes)
        weights = probe.weights_bytes(self.weights, recipe, compute, choice.base_storage)
        ends = 0 if "ends" not in choice.offload else probe.weights_bytes(
            self.weights, recipe, compute, choice.base_storage, is_end)
        activations = costs.bytes(self.config.num_layers, choice.num_tokens) + 4 * _SCORES * scores
        parts = TrainingParts(
            weights=weights - ends, loading=_READ_AHEAD + 8 * BLOCK_NUMBERS,
            optimizer_state=0 if "optimizer" in choice.offload else state, gradients=4 * sum(sizes),
            activations=activations, head=self._head(recipe, compute, choice),
            adapters=4 * sum(sizes) if choice.rank else 0)
        engine = self.engine
        if compute.device.type == "cpu":
            return TrainingPlan(self.name, choice, parts, engine.process, engine.proving, self.limit, engine.images,
                                engine.teaching, engine.answering)
        return TrainingPlan(
            self.name, choice, parts, CONTEXT_BYTES, self._scored(choice) if engine.proving else 0, self.limit,
            _FEATURES * 4 * choice.num_tokens * self.config.width if engine.images else 0, is_gpu=True,
            host_rows=self._host_rows(choice, ends, state))

    def _head(self, recipe: Recipe, compute: ComputeOptions, choice: MemoryChoice) -> int:
        key = choice.num_tokens, choice.base_storage, "ends" in choice.offload
        if key not in self._heads:
            self._heads[key] = probe.head_bytes(self.weights, recipe, compute, choice.base_storage)
        is_in_parts = choice.base_storage == "packed" or "ends" in choice.offload
        if self.engine.teaching and is_in_parts:  # a teacher's loss takes the head whole
            return self._heads[key] + torch.Size(self.weights.output.shape).numel() * compute.dtype.itemsize
        return self._heads[key]

    def _scored(self, choice: MemoryChoice) -> int:
        """What the trained side of the proof takes of a GPU: the layers' numbers, and the logits of some rows."""
        config, tokens = self.config, max(parity_served.GROUP_TOKENS, self.longest)
        logits = 4 * _LOGITS // 2 * min(parity_served.LOGITS, tokens * config.vocab_size)
        return logits + 4 * _HIDDEN * tokens * (config.width + config.ffn_width) + 4 * _SCORES * attend.BLOCK_SCORES

    def _host_rows(self, choice: MemoryChoice, ends: int, state: int) -> list[tuple[str, str, int]]:
        """What a run on a GPU takes of the host."""
        engine, away = self.engine, choice.offload
        waiting = 4 * self.config.num_layers * choice.num_tokens * self.config.width
        stages = {"loading": _READ_AHEAD, "proving": engine.proving, "teaching": engine.teaching,
                  "answering": engine.answering}
        name = max(stages, key=lambda stage: stages[stage])
        rows = [("process", "Python, torch, tokenizer, data", engine.process),
                ("ends", "embedding and output head", ends),
                ("moments", "", state if "optimizer" in away else 0),
                ("inputs", "of layers", waiting if "activations" in away else 0),
                ("images", "vision encoder and features", engine.images), (name, "the largest stage", stages[name])]
        return [row for row in rows if row[2]]

    def _probed(self, recipe: Recipe, compute: ComputeOptions, choice: MemoryChoice) -> probe.ActivationCosts:
        key = choice.base_storage, choice.checkpointing, choice.rank, "activations" in choice.offload
        if key not in self._costs:
            self._costs[key] = probe.measure(self.config, self.weights, recipe, compute, choice.base_storage)
        return self._costs[key]


def chosen(recipe: Recipe, compute: ComputeOptions, choice: MemoryChoice) -> tuple[Recipe, ComputeOptions]:
    """The recipe and the compute options with what was chosen."""
    recipe = replace(recipe, rank=choice.rank or recipe.rank, optimizer="adamw8" if choice.bits == 8 else "adamw")
    return recipe, replace(compute, max_tokens=choice.num_tokens, checkpointing=choice.checkpointing,
                           offload=choice.offload)


def trained_sizes(weights: Weights, recipe: Recipe) -> Iterator[int]:
    """The number of elements of each trained tensor."""
    sizes: list[int] = []

    def note(name: str, weight: Weight) -> Weight:
        numbers = torch.Size(weight.shape).numel()
        if recipe.method == "full":
            sizes.append(numbers)
        elif recipe.takes(name):
            rows, cols = weight.shape[-2:]
            sizes.extend([recipe.rank * cols, rows * recipe.rank, *([rows] if recipe.method == "dora" else [])])
        return weight

    (place if recipe.method == "full" else place_ends)(weights, note)
    yield from sizes


def _proving_bytes(located: Located, asked: ResolvedOptions) -> int:
    """What the engine takes at the end, with and without the adapter, beside the trained model.

    For a model that was trained whole: the model as it was written, and the pages of its file.
    """
    served, work = _served(located)
    scores = 16 * attend.BLOCK_SCORES
    if not asked.choice.rank:
        size = 4 if plain_format(open_original(located.path)) == "F32" else 2
        return 2 * size * sum(trained_sizes(served.weights, asked.recipe)) + scores + _running(served, work)
    file = probe.weights_bytes(served.weights, asked.recipe, asked.compute, "packed")  # read twice, then released
    return file + scores + 2 * work.weights_bytes + _running(served, work)


def _teaching_bytes(model: str) -> int:
    """The teacher in the engine, and its file while it is read."""
    served, work = _served(find_model(model, settings.read()))
    return 2 * work.weights_bytes + _running(served, work)


def _answering_bytes(located: Located, asked: ResolvedOptions) -> int:
    """The student in the engine, or its teacher if that takes more; 0 without rounds."""
    if not asked.round_prompts:
        return 0
    numbers, rank = sum(trained_sizes(asked.checkpoint.weights(), asked.recipe)), asked.choice.rank
    engine = student.settings_for(asked.longest, asked.round_prompts, rank)
    request = MemoryRequest(
        context=asked.longest, parallel=engine.max_sequences, adapter_slots=engine.max_adapters, adapter_rank=rank,
        adapters_bytes=3 * 4 * numbers if rank else 0)  # the file, its numbers, and what the engine makes of them
    header = read_header(located.path, located.name)
    served = serving_plan.make(header, request, open_planner(torch.get_num_threads()))
    weights = served.weights_bytes if rank else 4 * numbers
    return max(asked.teaching_bytes, weights + served.adapters_bytes + max(served.loading_bytes, served.running_bytes))


def _served(located: Located) -> tuple[ModelHeader, ServingPlan]:
    header = read_header(located.path, located.name)
    request = MemoryRequest(context=min(parity_served.GROUP_TOKENS, header.config.max_context), serves=False)
    return header, serving_plan.make(header, request, open_planner(torch.get_num_threads()))


def _running(header: ModelHeader, served: ServingPlan) -> int:
    """What a model that predicts takes besides its weights."""
    hidden = 4 * _HIDDEN * parity_served.GROUP_TOKENS * (header.config.width + header.config.ffn_width)
    logits = 4 * _LOGITS * min(parity_served.LOGITS, parity_served.GROUP_TOKENS * header.config.vocab_size)
    return served.cache_bytes + served.work_bytes + logits + hidden


def _device(options: TuneOptions) -> torch.device:
    """Where the run computes. A dry run may plan for a GPU that is not here."""
    if options.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(options.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count() and not options.dry_run:
        raise UnsupportedError(f"--device is {options.device!r}; this machine has {torch.cuda.device_count()} GPUs "
                               "that torch can use", hint="--dry-run plans for a GPU that is not here")
    return device
