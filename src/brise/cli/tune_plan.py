"""What a run of `brise tune` is going to take: settings that fit, and the table that says so."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise import settings
from brise.backends import open_planner
from brise.backends.torch import attend
from brise.checkpoint.convert_source import open_original
from brise.checkpoint.export import plain_format
from brise.checkpoint.open import Checkpoint
from brise.cli import terminal, tune_images, tune_options, tune_rounds, tune_show
from brise.data.prepare import Dataset
from brise.errors import UnsupportedError
from brise.files.digests import Located
from brise.hub.store import ModelStore, locate
from brise.memory import process as footprint
from brise.memory import serving_plan as engine_plan
from brise.memory import training_plan as plans
from brise.memory.model_header import describe
from brise.memory.serving_plan import MemoryRequest, ModelHeader
from brise.memory.training_plan import MemoryChoice, TrainingPlan
from brise.tune import pick_dtype, probe
from brise.tune.distill import on_policy, student
from brise.tune.estimate import Estimator, trained_sizes
from brise.tune.parity import served as sides
from brise.tune.pick_dtype import Speed
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Plain
from brise.tune.train import ComputeOptions

# Arrays that live at one time while models are compared: of the logits of both, and of a layer's numbers.
_LOGITS, _HIDDEN = 12, 4
_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ResolvedOptions:
    """What the options say, with what was measured or recorded where they say nothing."""

    checkpoint: Checkpoint
    recipe: Recipe
    machinery: ComputeOptions
    choice: MemoryChoice
    longest: int  # row
    may_shrink: bool
    may_checkpoint: bool
    speed: Speed | None  # None: nothing was measured
    images: int = 0  # bytes that the images of rows take
    teaching: int = 0  # and a teacher
    rounds: on_policy.RoundPlan | None = None


def memory(device: torch.device) -> int:
    """What is taken now."""
    return footprint.resident_bytes() if device.type == "cpu" else torch.cuda.memory_reserved(device)


def peak(device: torch.device) -> int:
    """The most that was taken."""
    return footprint.peak_bytes() if device.type == "cpu" else torch.cuda.max_memory_reserved(device)


def ask(args: argparse.Namespace, checkpoint: Checkpoint, dataset: Dataset, found: Mapping[str,
                                                                                           Plain]) -> ResolvedOptions:
    """The options of a run; `found` are the settings of the run that goes on."""
    recipe, device = tune_options.recipe_of(args), _device(args)
    longest = max(len(row.tokens) for row in (*dataset.train, *dataset.held_out))
    rounds = tune_rounds.plan_of(args)
    if rounds is not None:
        longest = max(longest, tune_rounds.longest(dataset.train, rounds, checkpoint.config.max_context))
    measured = None
    name = args.dtype if args.dtype != "auto" else found.get("dtype")
    if name not in _DTYPES:
        measured = pick_dtype.measure(checkpoint.weights().layers[0], device)
    dtype = measured.dtype if measured is not None else _DTYPES[str(name)]
    recorded = found.get("batch_tokens")
    tokens = args.batch_tokens or (recorded if type(recorded) is int else None)
    again = found.get("checkpointing") if args.checkpointing == "auto" else args.checkpointing == "on"
    choice = MemoryChoice(tokens or max(tune_options.BATCH_TOKENS, longest), again is True,
                          "packed" if args.method == "qlora" else "dense", 8 if args.optimizer == "adamw8" else 32,
                          0 if args.method == "full" else args.rank)
    if choice.num_tokens < longest:
        less = "leave long rows out with --max-length"
        raise UnsupportedError(f"--batch-tokens is {choice.num_tokens}, the longest row has {longest} tokens",
                               hint=f"give at least {longest}, or {less if rounds is None else 'less --round-tokens'}")
    return ResolvedOptions(checkpoint, recipe, ComputeOptions(device, dtype), choice, longest,
                           may_shrink=tokens is None,
                           may_checkpoint=args.checkpointing == "auto" and "checkpointing" not in found, speed=measured,
                           images=tune_images.planned_bytes(checkpoint, args.model, dataset, choice.num_tokens,
                                                            torch.get_num_threads()),
                           teaching=0 if args.teacher is None else _teaching(args.teacher), rounds=rounds)


def settle(asked: ResolvedOptions, located: Located, limit: int | None, *, proves: bool) -> TrainingPlan:
    """The plan of the fastest settings that fit; MemoryPromiseError if none do."""
    checkpoint, machinery = asked.checkpoint, asked.machinery
    weights = checkpoint.weights()
    # Once before the process is measured: what torch loads when it first computes is there then.
    probe.measure(checkpoint.config, weights, asked.recipe, machinery, asked.choice.keep)
    process = footprint.resident_bytes() + plans.LATER_BYTES
    if machinery.device.type == "cuda":
        process, free = 0, torch.cuda.mem_get_info(machinery.device)[0]
        limit = free if limit is None else min(limit, free)
    proving = _proving(located, asked) if proves else 0
    estimator = Estimator(located.name, checkpoint.config, weights, asked.recipe, machinery, process, proving, limit,
                          asked.longest, asked.images, asked.teaching,
                          _answering(located, asked))
    return plans.settle(asked.choice, may_shrink=asked.may_shrink, may_checkpoint=asked.may_checkpoint,
                        longest=asked.longest, count=estimator)


def _proving(located: Located, asked: ResolvedOptions) -> int:
    """What the engine takes at the end, with the adapter and without it, while the trained model is there, too.

    Of a model that was trained whole: as it was written, and the pages of its file.
    """
    served, work = _served(located)
    scores = 16 * attend.BLOCK_SCORES
    if not asked.choice.rank:
        size = 4 if plain_format(open_original(located.path)) == "F32" else 2
        return 2 * size * sum(trained_sizes(served.weights, asked.recipe)) + scores + _running(served, work)
    file = probe.weights_bytes(served.weights, asked.recipe, asked.machinery, "packed")  # read twice, then let go
    return file + scores + 2 * work.weights_bytes + _running(served, work)


def _teaching(model: str) -> int:
    """A teacher by the engine, and its file while it is read."""
    served, work = _served(locate(model, ModelStore(settings.read().home)))
    return 2 * work.weights_bytes + _running(served, work)


def _answering(located: Located, asked: ResolvedOptions) -> int:
    """The student as the engine serves it, or its teacher where that takes more; 0 where there are no rounds."""
    if asked.rounds is None:
        return 0
    numbers, rank = sum(trained_sizes(asked.checkpoint.weights(), asked.recipe)), asked.choice.rank
    engine = student.settings_for(asked.longest, asked.rounds.prompts, rank)
    wish = MemoryRequest(context=asked.longest, parallel=engine.max_sequences, adapter_slots=engine.max_adapters,
                         # The file, its numbers and what is made of them.
                         adapters_bytes=3 * 4 * numbers if rank else 0, adapter_rank=rank)
    subject = describe(located.path, located.name)
    served = engine_plan.make(subject, wish, open_planner(torch.get_num_threads()))
    weights = served.weights_bytes if rank else 4 * numbers
    return max(asked.teaching, weights + served.adapters_bytes + max(served.loading_bytes, served.running_bytes))


def _served(located: Located) -> tuple[ModelHeader, engine_plan.ServingPlan]:
    subject = describe(located.path, located.name)
    wish = MemoryRequest(context=min(sides.GROUP_TOKENS, subject.config.max_context), serves=False)
    return subject, engine_plan.make(subject, wish, open_planner(torch.get_num_threads()))


def _running(subject: ModelHeader, served: engine_plan.ServingPlan) -> int:
    """Of a model whose predictions are asked for, besides its weights."""
    hidden = 4 * _HIDDEN * sides.GROUP_TOKENS * (subject.config.width + subject.config.ffn_width)
    logits = 4 * _LOGITS * min(sides.LOGITS, sides.GROUP_TOKENS * subject.config.vocab_size)
    return served.cache_bytes + served.work_bytes + logits + hidden


def say(args: argparse.Namespace, plan: TrainingPlan, asked: ResolvedOptions) -> None:
    """The plan, to whom it may concern."""
    dtype = str(asked.machinery.dtype).removeprefix("torch.")
    if args.json:
        tune_show.print_event(
            "plan", total=plan.total, memory=plan.limit, dtype=dtype, **asdict(plan.choice),
            rates=None if asked.speed is None else dict(asked.speed.rates),
            parts=[{"name": name, "note": note, "bytes": nbytes} for name, note, nbytes in plan.rows()])
        return
    console = Console(stderr=not args.dry_run, highlight=False)
    fits = "" if plan.limit is None else f" of {terminal.size(plan.limit)}, fits"
    console.print(Text(f"{plan.model}: {terminal.size(plan.total)}{fits}", style="bold"))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for column in ("part", "size", "note"):
        table.add_column(column, justify="right" if column == "size" else "left", no_wrap=True)
    for name, note, nbytes in plan.rows():
        table.add_row(f"  {name}", terminal.size(nbytes), note)
    console.print(table)
    console.print(Text(f"computes in {dtype if asked.speed is None else asked.speed}, on {asked.machinery.device}"),
                  soft_wrap=True)


def _device(args: argparse.Namespace) -> torch.device:
    if args.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(args.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"--device is {args.device!r}, allowed are auto, cpu, cuda and cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UnsupportedError(f"--device is {args.device!r}; this machine has {torch.cuda.device_count()} GPUs that "
                               "torch can use")
    return device
