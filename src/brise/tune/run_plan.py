"""The plan of a run: settings that fit into the memory limit, put together from what each part of the trainer takes.

Needs the extra `tune`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from brise.memory.training_plan import BaseStorage, MemoryChoice, TrainingParts, TrainingPlan
from brise.models.config import Config
from brise.models.lora import place_ends
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


def memory_in_use(device: torch.device) -> int:
    """Bytes of the device's memory in use."""
    return process.resident_bytes() if device.type == "cpu" else torch.cuda.memory_reserved(device)


def peak_memory(device: torch.device) -> int:
    """The most bytes in use at one time."""
    return process.peak_bytes() if device.type == "cpu" else torch.cuda.max_memory_reserved(device)


def resolve(options: TuneOptions, checkpoint: Checkpoint, dataset: Dataset,
            recorded: Mapping[str, Plain]) -> ResolvedOptions:
    """The options of a run; `recorded` are the settings of the run that goes on."""
    device, rounds = _device(options.device), options.on_policy
    longest = max(len(row.tokens) for row in (*dataset.train, *dataset.held_out))
    if rounds is not None:
        longest = max(longest, on_policy.longest_row(dataset.train, rounds, checkpoint.config.max_context))
    measured = None
    name = options.dtype if options.dtype != "auto" else recorded.get("dtype")
    if name not in _DTYPES:
        measured = pick_dtype.measure(checkpoint.weights().layers[0], device)
    dtype = measured.dtype if measured is not None else _DTYPES[str(name)]
    before = recorded.get("batch_tokens")
    tokens = options.batch_tokens or (before if type(before) is int else None)
    again = (recorded.get("checkpointing") if options.checkpointing == "auto"
             else options.checkpointing == "on")
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
        round_prompts=0 if rounds is None else rounds.prompts)


def settle(asked: ResolvedOptions, located: Located, limit: int | None, *, proves: bool) -> TrainingPlan:
    """The plan of the fastest settings that fit; MemoryLimitError if none do."""
    checkpoint, compute = asked.checkpoint, asked.compute
    weights = checkpoint.weights()
    # Once before the process is measured, so that what torch loads with its first computation is counted.
    probe.measure(checkpoint.config, weights, asked.recipe, compute, asked.choice.base_storage)
    resident = process.resident_bytes() + training_plan.LATER_BYTES
    if compute.device.type == "cuda":
        resident, free = 0, torch.cuda.mem_get_info(compute.device)[0]
        limit = free if limit is None else min(limit, free)
    proving = _proving_bytes(located, asked) if proves else 0
    estimator = Estimator(located.name, checkpoint.config, weights, asked.recipe, compute, resident, proving, limit,
                          asked.longest, asked.images_bytes, asked.teaching_bytes, _answering_bytes(located, asked))
    return training_plan.settle(asked.choice, may_shrink=asked.may_shrink, may_checkpoint=asked.may_checkpoint,
                                longest=asked.longest, count=estimator)


@dataclass
class Estimator:
    """Plans for a model of which only shapes and formats are known; each probe runs once."""

    name: str
    config: Config
    weights: Weights
    recipe: Recipe
    compute: ComputeOptions
    process: int
    proving: int
    limit: int | None
    longest: int  # row
    images: int = 0
    teaching: int = 0
    answering: int = 0
    _costs: dict[tuple[BaseStorage, bool, int], probe.ActivationCosts] = field(default_factory=dict)

    def __call__(self, choice: MemoryChoice) -> TrainingPlan:
        """The plan of a choice."""
        recipe, compute = chosen(self.recipe, self.compute, choice)
        sizes = list(trained_sizes(self.weights, recipe))
        head = probe.head_bytes(self.weights, recipe, compute, choice.base_storage)
        scores = min(attend.BLOCK_SCORES, self.config.num_heads * self.longest * choice.num_tokens)
        costs = self._probed(recipe, compute, choice)
        parts = TrainingParts(
            weights=probe.weights_bytes(self.weights, recipe, compute, choice.base_storage),
            loading=_READ_AHEAD + 8 * BLOCK_NUMBERS,
            optimizer_state=sum(state_bytes(size, 8 if choice.bits == 8 else 32) for size in sizes),
            gradients=4 * sum(sizes),
            activations=costs.bytes(self.config.num_layers, choice.num_tokens) + 4 * _SCORES * scores, head=head)
        return TrainingPlan(self.name, choice, parts, self.process, self.proving, self.limit, self.images,
                            self.teaching, self.answering)

    def _probed(self, recipe: Recipe, compute: ComputeOptions, choice: MemoryChoice) -> probe.ActivationCosts:
        key = choice.base_storage, choice.checkpointing, choice.rank
        if key not in self._costs:
            self._costs[key] = probe.measure(self.config, self.weights, recipe, compute, choice.base_storage)
        return self._costs[key]


def chosen(recipe: Recipe, compute: ComputeOptions, choice: MemoryChoice) -> tuple[Recipe, ComputeOptions]:
    """The recipe and the compute options with what was chosen."""
    recipe = replace(recipe, rank=choice.rank or recipe.rank, optimizer="adamw8" if choice.bits == 8 else "adamw")
    return recipe, replace(compute, max_tokens=choice.num_tokens, checkpointing=choice.checkpointing)


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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"--device is {name!r}, allowed are auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(f"--device is {name!r}; this machine has {torch.cuda.device_count()} GPUs that "
                               "torch can use")
    return device
