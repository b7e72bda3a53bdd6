"""One run of `brise tune` from its options to an adapter. Needs the extra `tune`."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import torch

from brise import settings
from brise.backends import num_cores
from brise.backends.torch import weights as torch_weights
from brise.checkpoint.adapters import lineage
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.cli import (
    terminal,
    tune_endpoint,
    tune_finish,
    tune_images,
    tune_lesson,
    tune_options,
    tune_plan,
    tune_ranks,
    tune_rounds,
    tune_show,
    tune_teacher,
)
from brise.cli.tune_finish import Finished
from brise.cli.tune_lesson import TrainingSet
from brise.cli.tune_ranks import Processes
from brise.cli.tune_rounds import RoundFeeder
from brise.cli.tune_teacher import Opened
from brise.data.prepare import Dataset, prepare
from brise.errors import BriseError, MemoryLimitError, OutputError
from brise.files.digests import Located
from brise.hub.store import ModelStore, locate
from brise.memory import process
from brise.memory.training_plan import Keep, TrainingPlan
from brise.models.weights import Weight, place
from brise.text.load import Tokens, tokens_for
from brise.tune import adapters, run_folder
from brise.tune.process_group import FirstFailedError
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Identity, Plain, RunFolder
from brise.tune.session import TrainingSession
from brise.tune.train import ComputeOptions, Trainer

_INTERRUPTED = 130  # 128 + SIGINT, as shells say it
_READ_AHEAD = 32 << 20  # bytes of the model's file, before its pages are let go


@dataclass(frozen=True)
class Decided:
    """What the first process decides for all of them."""

    dataset: Dataset
    recipe: Recipe
    machinery: ComputeOptions
    keep: Keep
    threads: int
    settings: Mapping[str, Plain]


@dataclass
class RunPlanner:
    """Where the first process decides: what it has read, and the folder of the run."""

    args: argparse.Namespace
    company: Processes
    located: Located
    checkpoint: Checkpoint
    tokens: Tokens | None = None
    teacher: Opened | None = None
    folder: RunFolder | None = None

    def decide(self) -> Decided | None:
        """Reads the data, plans, and opens the folder; None after a dry run."""
        args, checkpoint = self.args, self.checkpoint
        self.folder = _begun(args)
        found: Mapping[str, Plain] = {} if self.folder is None else self.folder.identity.settings
        threads = _threads(args, found, self.company.local_count)
        torch.set_num_threads(threads)
        self.tokens = tokens_for(checkpoint)
        data, options = tune_endpoint.rows(
            args, _out(args), tune_options.data_options_of(args, checkpoint.config.max_context))
        dataset = prepare(data, self.tokens, options, images=tune_images.settings_of(checkpoint))
        _say_data(args, dataset)
        asked = tune_plan.ask(args, checkpoint, dataset, found)
        self.company.check(args, asked.recipe)
        plan = tune_plan.settle(asked, self.located, args.memory, proves=args.parity_rows > 0)
        tune_plan.say(args, plan, asked)
        if args.dry_run:
            return None
        self.teacher = tune_teacher.opened(args, self.tokens, dataset.train)
        machinery = replace(asked.machinery, max_tokens=plan.choice.num_tokens, checkpointing=plan.choice.checkpointing)
        decided = Decided(dataset, asked.recipe, machinery, plan.choice.keep, threads,
                          _settings(args, asked, plan, self.company.count))
        identity = Identity(decided.settings, lineage.base_digest(self.located), dataset.digest)
        if self.folder is None:
            self.folder = run_folder.create(_out(args), identity)
        run_folder.check_same(self.folder.identity, identity)
        return decided


def run(args: argparse.Namespace) -> int:
    """Exit status 0; 130 if Ctrl-C ended it."""
    with tune_ranks.joined(args) as company:
        try:
            return _run(args, company)
        except FirstFailedError:
            return 0  # the first says why, and its exit status counts
        except BriseError as error:
            if args.json and company.is_first:
                tune_show.print_event("error", message=error.args[0], hint=error.hint)
            raise


def _run(args: argparse.Namespace, company: Processes) -> int:
    tune_options.recipe_of(args)  # options that cannot be are told before anything is read
    tune_endpoint.check(args)
    if args.memory is not None:
        process.keep_small()
    located = company.first(lambda: locate(args.model, ModelStore(settings.read().home)))
    desk = RunPlanner(args, company, located, open_checkpoint(located.path))
    try:
        decided = company.first(desk.decide)
        return 0 if decided is None else _train(args, desk, decided)
    finally:
        if desk.folder is not None:
            desk.folder.close()


def _begun(args: argparse.Namespace) -> RunFolder | None:
    """The folder of the run that goes on; None for a new one."""
    if not args.resume:
        if (_out(args) / run_folder.RUN).exists() and not args.dry_run:
            raise OutputError(f"there is a run in {str(_out(args))!r} already",
                              hint="go on with it (--resume), or give another folder (--out)")
        return None
    begun = run_folder.reopen(_out(args))
    if begun is None:
        terminal.note(f"there is no run in {_out(args)} to go on with: it begins")
    return begun


def _out(args: argparse.Namespace) -> Path:
    if args.out is not None:
        return Path(args.out)
    model = Path(args.model)
    return Path(f"{args.data[0].resolve().stem}-{model.stem if model.suffix == '.gguf' else model.name}")


def _threads(args: argparse.Namespace, found: Mapping[str, Plain], processes: int) -> int:
    recorded = found.get("threads")
    usual = settings.read().threads or max(1, num_cores() // processes)
    return args.threads or (recorded if type(recorded) is int else None) or usual


def _say_data(args: argparse.Namespace, dataset: Dataset) -> None:
    if args.json:
        tune_show.print_event("data", **dataset.report.to_json())
        return
    for line in dataset.report.lines():
        (terminal.result if args.dry_run else terminal.note)(line)


def _settings(args: argparse.Namespace, asked: tune_plan.ResolvedOptions, plan: TrainingPlan,
              processes: int) -> dict[str, Plain]:
    """Everything that decides about the weights that come out, to the last bit."""
    recipe = asdict(asked.recipe)
    (beta1, beta2), targets = recipe.pop("betas"), recipe.pop("targets")
    spread: dict[str, Plain] = {"processes": processes} if processes > 1 else {}
    return {**recipe, "beta1": beta1, "beta2": beta2, "targets": ",".join(targets), "keep": plan.choice.keep,
            "batch_tokens": plan.choice.num_tokens, "checkpointing": plan.choice.checkpointing,
            "dtype": str(asked.machinery.dtype).removeprefix("torch."), "device": str(asked.machinery.device),
            "threads": torch.get_num_threads(), "eval_rows": args.eval_rows, **tune_teacher.settings_of(args),
            **tune_endpoint.settings_of(args), **tune_rounds.settings_of(tune_rounds.plan_of(args)), **spread}


def _train(args: argparse.Namespace, desk: RunPlanner, decided: Decided) -> int:
    company, folder = desk.company, desk.folder
    torch.set_num_threads(decided.threads)
    lesson = _lesson(args, desk, decided)
    trainer = _trainer(desk, decided, lesson)
    device = trainer.machinery.device
    with _stop_on_interrupt(says=company.is_first) as stop:
        session = TrainingSession(trainer, company.folder(folder), tune_show.Silent(), args.save_every,
                                  is_stopped=lambda: stop.is_asked, check=lambda: _check(args, device))
        session.restore()
        clock = tune_show.Clock(trainer.num_steps, session.eval_every,
                                lesson.material.plan.steps if lesson.material is not None else None)
        with tune_show.shown(clock, lambda: tune_plan.memory(device), trainer.step, as_json=args.json,
                             is_first=company.is_first) as show:
            session.watcher = show
            if lesson.material is not None:
                session.ready = RoundFeeder(lesson.material, trainer, lambda: stop.is_asked, show).ready
            show.event("start", folder=str(_out(args)), steps=trainer.num_steps, step=trainer.step,
                       settings=dict(decided.settings))
            end = session.run()
    if end == "interrupted":
        if company.is_first:
            _say_interrupted(args, trainer.step)
        return _INTERRUPTED
    session.take_best()
    company.gather(trainer)
    if folder is None:
        return 0
    assert desk.tokens is not None
    done = Finished(desk.located, desk.checkpoint, desk.tokens, decided.dataset, session, folder, end)
    return tune_finish.finish(args, done)


def _say_interrupted(args: argparse.Namespace, step: int) -> None:
    if args.json:
        tune_show.print_event("interrupted", step=step)
    terminal.note(f"stopped after step {step}, which is saved in {_out(args)}\n"
                  "hint: the same command with --resume goes on from there")


def _lesson(args: argparse.Namespace, desk: RunPlanner, decided: Decided) -> TrainingSet:
    if desk.folder is None or desk.tokens is None:  # one of several processes, which have no teacher
        return TrainingSet(decided.dataset.train, tune_lesson.spread(decided.dataset.held_out, args.eval_rows))
    return tune_lesson.prepared(args, tune_lesson.Run(
        desk.checkpoint, desk.tokens, desk.teacher, decided.dataset, decided.recipe, decided.machinery,
        desk.folder.path, decided.threads, decided.settings))


def _trainer(desk: RunPlanner, decided: Decided, lesson: TrainingSet) -> Trainer:
    checkpoint, company = desk.checkpoint, desk.company
    machinery = replace(decided.machinery, device=company.device(decided.machinery.device),
                        features_of=tune_images.load(checkpoint, decided.dataset, decided.threads))
    num_read = 0

    def put(name: str, weight: Weight) -> Weight:
        nonlocal num_read
        placed = torch_weights.place(name, weight, machinery.device, machinery.dtype, decided.keep)
        num_read += torch.Size(weight.shape).numel()
        if num_read >= _READ_AHEAD:
            checkpoint.forget()
            num_read = 0
        return placed

    weights = place(checkpoint.weights(), put)
    checkpoint.forget()
    trained, ranks = company.around(adapters.new(weights, decided.recipe))
    return Trainer(checkpoint.config, trained, decided.recipe, machinery, lesson.rows, lesson.held_out, ranks)


def _check(args: argparse.Namespace, device: torch.device) -> None:
    """The promise is kept, or the run ends: nobody runs into a limit that was stated."""
    if args.memory is not None and (peak := tune_plan.peak(device)) > args.memory:
        raise MemoryLimitError(peak, args.memory, "the most that was measured while training",
                               hint="begin again with a smaller --batch-tokens or --checkpointing on")


@dataclass
class _Stop:
    """Whether Ctrl-C was pressed."""

    says: bool
    is_asked: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        if self.says:
            terminal.note("\nstopping after this step; Ctrl-C again leaves at once, and loses what came after the last "
                          "checkpoint")


@contextmanager
def _stop_on_interrupt(*, says: bool) -> Iterator[_Stop]:
    stop = _Stop(says)
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
