"""A training run from its options to its adapter. Needs the extra `tune`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch

from brise import settings
from brise.backends import num_cores
from brise.backends.torch import weights as torch_weights
from brise.checkpoint.adapters import lineage
from brise.checkpoint.adapters.merge import rows_of
from brise.checkpoint.adapters.peft import WEIGHTS_FILE, read_adapter
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.data.prepare import Dataset, actions_of, prepare
from brise.errors import BriseError, MemoryLimitError, OutputError
from brise.files.digests import Located, file_digest
from brise.hub.locate import find_model
from brise.memory import process
from brise.memory.training_plan import BaseStorage, TrainingPlan
from brise.models.lora import is_end
from brise.models.weights import Weight, place
from brise.text.action_space import Actions
from brise.text.load import Tokens, tokens_for
from brise.tune import adapters, kept_options, row_images, run_folder, run_plan
from brise.tune.distill import endpoint, open_teacher, training_set
from brise.tune.distill.open_teacher import OpenedTeacher
from brise.tune.distill.training_set import RoundFeeder, TrainingSet, TrainingSource
from brise.tune.finish import FinishedRun, finish
from brise.tune.options import TuneOptions
from brise.tune.processes import Processes, joined
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Identity, Plain, RunFolder
from brise.tune.run_plan import ResolvedOptions
from brise.tune.session import TrainingSession
from brise.tune.train import HOST, ComputeOptions, Trainer
from brise.tune.watch import FirstFailedError, SilentSteps, TrainingStart, TuneResult, TuneWatcher
from brise.watch import running_clock

_READ_AHEAD = 32 << 20  # numbers of the model's file, before its pages are let go


@dataclass(frozen=True)
class Decided:
    """What the first process decides for all of them."""

    dataset: Dataset
    plan: TrainingPlan
    recipe: Recipe
    compute: ComputeOptions
    base_storage: BaseStorage
    threads: int
    settings: Mapping[str, Plain]
    stop_at: int | None = None  # fewer steps than the run was begun with


@dataclass
class RunPlanner:
    """The part of a run that only the first process does: it reads the data, plans, and opens the folder."""

    options: TuneOptions
    watcher: TuneWatcher
    processes: Processes
    located: Located
    checkpoint: Checkpoint
    tokens: Tokens | None = None
    teacher: OpenedTeacher | None = None
    folder: RunFolder | None = None

    def decide(self) -> Decided:
        """Reads the data and plans; opens the folder unless it is a dry run."""
        options, checkpoint = self.options, self.checkpoint
        self.folder = self._begun()
        recorded: Mapping[str, Plain] = {} if self.folder is None else self.folder.identity.settings
        threads = _threads(options, recorded, self.processes.local_count)
        torch.set_num_threads(threads)
        self.tokens = tokens_for(checkpoint)
        dataset = self._dataset(self.tokens)
        self.watcher.data_read(dataset.report)
        options, stop_at = _shrunk(options, self.folder, len(dataset.train))
        asked = run_plan.resolve(options, checkpoint, dataset, recorded)
        self.processes.check(options, asked.recipe)
        if self.processes.count > 1:  # they share what each has of the GPU's memory
            asked = replace(asked, offloads=((),), most_offload=())
        plan = run_plan.settle(asked, self.located, options.memory, proves=options.parity_rows > 0)
        self.watcher.planned(plan, str(asked.compute.device), _name(asked.compute.dtype),
                             None if asked.speed is None else asked.speed.rates)
        _, compute = run_plan.chosen(asked.recipe, asked.compute, plan.choice)
        if not options.dry_run:
            self.teacher = open_teacher.opened(options.teacher, self.tokens, dataset.train)
        actions = actions_of(options.rows, self.tokens)
        decided = Decided(dataset, plan, asked.recipe, compute, plan.choice.base_storage, threads, {} if options.dry_run
                          else _settings(options, asked, plan, self.processes.count, actions), stop_at)
        if options.dry_run:
            return decided
        identity = Identity(decided.settings, lineage.base_digest(self.located), dataset.digest)
        if self.folder is None:
            self.folder = run_folder.create(options.folder, identity)
        run_folder.check_same(self.folder.identity, identity)
        kept_options.keep(self.folder.path, options)
        return decided

    def _begun(self) -> RunFolder | None:
        """The folder of the run that resumes; None for a new one."""
        out = self.options.folder
        if self.options.finish:
            found = run_folder.reopen(out)
            if found is None:
                raise OutputError(f"there is no run in {str(out)!r} to finish")
            return found
        if not self.options.resume:
            if (out / run_folder.RUN).exists() and not self.options.dry_run:
                raise OutputError(f"there is a run in {str(out)!r} already",
                                  hint="go on with it (--resume), or give another folder (--out)")
            return None
        begun = run_folder.reopen(out)
        if begun is None:
            self.watcher.note(f"there is no run in {out} to go on with: it begins")
        return begun

    def _dataset(self, tokens: Tokens) -> Dataset:
        options, checkpoint = self.options, self.checkpoint
        data, rows = list(options.data), options.data_options(checkpoint.config.max_context)
        if options.teacher_endpoint is not None:
            data, rows = endpoint.answered_rows(options.teacher_endpoint, data, options.folder, rows, self.watcher)
        return prepare(data, tokens, rows, images=row_images.settings_of(checkpoint))


def train(options: TuneOptions, watcher: TuneWatcher) -> TuneResult:
    """Runs from options to result. Each of several processes calls this; FirstFailedError: the first has failed."""
    with joined(options.device) as processes:
        try:
            return _run(options, watcher, processes)
        except FirstFailedError:
            raise
        except torch.OutOfMemoryError as error:
            full = BriseError(f"the GPU's memory is full: {str(error).split('. ')[0]}",
                              hint="begin again with --checkpointing on, --offload all, or a smaller --batch-tokens")
            watcher.failed(full)
            raise full from error
        except BriseError as error:
            if processes.is_first:
                watcher.failed(error)
            raise


def _run(options: TuneOptions, watcher: TuneWatcher, processes: Processes) -> TuneResult:
    if options.memory is not None:
        process.keep_small()
    located = processes.first(lambda: find_model(options.model, settings.read()))
    planner = RunPlanner(options, watcher, processes, located, open_checkpoint(located.path))
    try:
        decided = processes.first(planner.decide)
        if options.dry_run:
            return TuneResult(options.folder, "planned", decided.dataset.report, decided.plan,
                              is_first=processes.is_first)
        return _train(planner, decided)
    finally:
        if planner.folder is not None:
            planner.folder.close()


def _train(planner: RunPlanner, decided: Decided) -> TuneResult:
    options, processes, folder = planner.options, planner.processes, planner.folder
    torch.set_num_threads(decided.threads)
    own = _training_set(planner, decided)
    trainer = _trainer(planner, decided, own)
    device = trainer.compute.device
    session = TrainingSession(trainer, processes.folder(folder), SilentSteps(), options.save_every,
                              check=lambda: _check_memory(options, device))
    session.restore()
    start = TrainingStart(options.folder, trainer.step, trainer.end_step, session.eval_every,
                          None if own.round_prompts is None else own.round_prompts.plan.steps, decided.settings,
                          lambda: run_plan.memory_in_use(device), processes.is_first)
    with running_clock() as clock, planner.watcher.training(start) as steps:
        session.clock = clock
        session.watcher, session.is_stopped = steps, steps.is_stopped
        if own.round_prompts is not None:
            session.ready = RoundFeeder(own.round_prompts, trainer, steps, clock).ready
        if trainer.step == 0:
            session.evaluate_before()
        end = session.run()
    result = TuneResult(options.folder, end, decided.dataset.report, decided.plan, trainer.step, session.tokens,
                        session.seconds, session.before, session.best, session.is_worse,
                        is_first=processes.is_first)
    if end == "interrupted":
        return result
    if not session.is_worse:
        session.take_best()
    processes.gather(trainer)
    if folder is None:
        return result
    assert planner.tokens is not None
    return finish(options, FinishedRun(planner.located, planner.checkpoint, planner.tokens, decided.dataset,
                                       decided.plan, session, folder, end), planner.watcher)


def _training_set(planner: RunPlanner, decided: Decided) -> TrainingSet:
    options, dataset = planner.options, decided.dataset
    if planner.folder is None or planner.tokens is None:  # one of several processes, which need no teacher
        return TrainingSet(dataset.train, training_set.evenly_picked(dataset.held_out, options.eval_rows))
    return training_set.prepared(options, TrainingSource(
        planner.checkpoint, planner.tokens, planner.teacher, dataset, decided.recipe, decided.compute,
        planner.folder.path, decided.threads, decided.settings), planner.watcher)


def _trainer(planner: RunPlanner, decided: Decided, own: TrainingSet) -> Trainer:
    checkpoint, processes = planner.checkpoint, planner.processes
    compute = replace(decided.compute, device=processes.device(decided.compute.device),
                      features_of=row_images.load(checkpoint, decided.dataset, decided.threads))
    run_plan.keep_within(compute.device, planner.options.memory)
    num_read = 0

    def put(name: str, weight: Weight) -> Weight:
        nonlocal num_read
        home = HOST if "ends" in compute.offload and is_end(name) else compute.device
        placed = torch_weights.place(name, weight, home, compute.dtype, decided.base_storage)
        num_read += torch.Size(weight.shape).numel()
        if num_read >= _READ_AHEAD:
            checkpoint.forget()
            num_read = 0
        return placed

    weights = place(checkpoint.weights(), put)
    checkpoint.forget()
    trained = adapters.new(weights, decided.recipe)
    if planner.options.start is not None:
        low_ranks = read_adapter(planner.options.start, checkpoint.config, rows_of(checkpoint.weights())).low_ranks
        adapters.begin_with(trained, low_ranks, decided.recipe.scale)
    trained, ranks = processes.around(trained)
    return Trainer(checkpoint.config, trained, decided.recipe, compute, own.rows, own.held_out, ranks,
                   decided.stop_at)


def _shrunk(options: TuneOptions, folder: RunFolder | None, num_rows: int) -> tuple[TuneOptions, int | None]:
    """The options with as many steps as the run was begun with, and where it ends if that is before them.

    A run that ends early takes the same steps as one that does not: the learning rate goes on following its schedule.
    """
    if folder is None:
        return options, None
    recorded, done = folder.identity.settings, max(folder.steps(), default=0)
    if options.finish and not done:
        raise OutputError(f"the run in {str(folder.path)!r} has no checkpoint yet, so there is nothing to finish",
                          hint="--resume begins it again")
    steps, epochs = recorded.get("steps"), recorded.get("epochs")
    is_known = (steps is None or type(steps) is int) and isinstance(epochs, float)
    if options.on_policy is not None or not is_known:
        return options, done if options.finish else None
    begun = replace(options, steps=steps, epochs=epochs)  # type: ignore[arg-type]
    asked, whole = (each.recipe().num_steps(num_rows) for each in (options, begun))
    if options.finish:
        return begun, done
    if asked >= whole:
        return options, None
    if asked < done:
        raise OutputError(f"{asked} steps are asked for, and {done} are done: allowed is {done} to {whole}",
                          hint=f"--finish makes an adapter of what is there; or --steps {done}")
    return begun, asked


def _threads(options: TuneOptions, recorded: Mapping[str, Plain], processes: int) -> int:
    before = recorded.get("threads")
    usual = settings.read().threads or max(1, num_cores() // processes)
    return options.threads or (before if type(before) is int else None) or usual


def _settings(options: TuneOptions, asked: ResolvedOptions, plan: TrainingPlan, processes: int,
              actions: Actions | None) -> dict[str, Plain]:
    """Everything that decides the resulting weights, to the last bit."""
    recipe = asdict(asked.recipe)
    (beta1, beta2), targets = recipe.pop("betas"), recipe.pop("targets")
    several: dict[str, Plain] = {"processes": processes} if processes > 1 else {}
    return {**recipe, "beta1": beta1, "beta2": beta2, "targets": ",".join(targets),
            "keep": plan.choice.base_storage, "batch_tokens": plan.choice.num_tokens,
            "checkpointing": plan.choice.checkpointing, "dtype": _name(asked.compute.dtype),
            "device": str(asked.compute.device), "threads": torch.get_num_threads(), "eval_rows": options.eval_rows,
            **open_teacher.settings_of(options.teacher), **endpoint.settings_of(options.teacher_endpoint),
            **training_set.settings_of(options.on_policy), **several,
            **({} if options.start is None else {"start": file_digest(options.start / WEIGHTS_FILE)}),
            **({} if actions is None else actions.settings())}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_memory(options: TuneOptions, device: torch.device) -> None:
    """Ends the run with MemoryLimitError once it has taken more than the stated limit."""
    if options.memory is not None and (peak := run_plan.peak_memory(device)) > options.memory:
        raise MemoryLimitError(peak, options.memory, "the most that was measured while training",
                               hint="begin again with a smaller --batch-tokens or --checkpointing on")
