"""One run of `brise tune` from its options to an adapter. Needs the extra `tune`."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

import torch

from brise import settings
from brise.checkpoint import lineage
from brise.checkpoint.source import Checkpoint, open_checkpoint
from brise.checkpoint.store import Located, Store, locate
from brise.cli import terminal, tune_finish, tune_options, tune_plan, tune_show, tune_teacher
from brise.cli.tune_finish import Finished
from brise.engine import footprint
from brise.engine.model import num_cores
from brise.errors import BriseError, MemoryPromiseError, OutputError
from brise.models.weights import Weight, place
from brise.ops import torch_weights
from brise.text.load import Tokens, tokens_for
from brise.tune import adapters, run_folder
from brise.tune.example import Row
from brise.tune.plan import Plan
from brise.tune.prepare import Dataset, prepare
from brise.tune.run_folder import Identity, Plain, RunFolder
from brise.tune.session import Session
from brise.tune.train import Trainer

_READ_AHEAD = 32 << 20  # bytes of the model's file, before its pages are let go


@dataclass(frozen=True)
class Start:
    """What was read before anything is planned."""

    located: Located
    checkpoint: Checkpoint
    tokens: Tokens
    dataset: Dataset


def run(args: argparse.Namespace) -> int:
    """Exit status 0; 130 if Ctrl-C ended it."""
    try:
        return _run(args)
    except BriseError as error:
        if args.json:
            tune_show.print_event("error", message=error.args[0], hint=error.hint)
        raise


def _run(args: argparse.Namespace) -> int:
    begun = _begun(args)
    try:
        found: Mapping[str, Plain] = {} if begun is None else begun.identity.settings
        torch.set_num_threads(_threads(args, found))
        if args.memory is not None:
            footprint.keep_small()
        start = _start(args)
        _say_data(args, start.dataset)
        asked = tune_plan.ask(args, start.checkpoint, start.dataset, found)
        plan = tune_plan.settle(asked, start.located, args.memory, proves=args.parity_rows > 0)
        tune_plan.say(args, plan, asked)
        if args.dry_run:
            return 0
        identity = Identity(_settings(args, asked, plan), lineage.base_digest(start.located), start.dataset.digest)
        if begun is None:
            begun = run_folder.create(_out(args), identity)
        run_folder.check_same(begun.identity, identity)
        return _train(args, start, asked, plan, begun)
    finally:
        if begun is not None:
            begun.close()


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


def _threads(args: argparse.Namespace, found: Mapping[str, Plain]) -> int:
    recorded = found.get("threads")
    return args.threads or (recorded if type(recorded) is int else None) or settings.read().threads or num_cores()


def _start(args: argparse.Namespace) -> Start:
    located = locate(args.model, Store(settings.read().home))
    checkpoint = open_checkpoint(located.path)
    tokens = tokens_for(checkpoint)
    options = tune_options.data_options_of(args, checkpoint.config.max_context)
    return Start(located, checkpoint, tokens, prepare(args.data, tokens, options))


def _say_data(args: argparse.Namespace, dataset: Dataset) -> None:
    if args.json:
        tune_show.print_event("data", **dataset.report.to_json())
        return
    for line in dataset.report.lines():
        (terminal.result if args.dry_run else terminal.note)(line)


def _settings(args: argparse.Namespace, asked: tune_plan.Asked, plan: Plan) -> dict[str, Plain]:
    """Everything that decides about the weights that come out, to the last bit."""
    recipe = asdict(asked.recipe)
    (beta1, beta2), targets = recipe.pop("betas"), recipe.pop("targets")
    return {**recipe, "beta1": beta1, "beta2": beta2, "targets": ",".join(targets), "keep": plan.choice.keep,
            "batch_tokens": plan.choice.num_tokens, "checkpointing": plan.choice.checkpointing,
            "dtype": str(asked.machinery.dtype).removeprefix("torch."), "device": str(asked.machinery.device),
            "threads": torch.get_num_threads(), "eval_rows": args.eval_rows, **tune_teacher.settings_of(args)}


def _train(args: argparse.Namespace, start: Start, asked: tune_plan.Asked, plan: Plan, folder: RunFolder) -> int:
    rows = tune_teacher.taught(args, start.dataset.train, start.tokens,
                               tune_options.data_options_of(args, start.checkpoint.config.max_context), folder.path,
                               torch.get_num_threads(), folder.identity.settings)
    trainer = _trainer(args, start, asked, plan, rows)
    with _stop_on_interrupt() as stop:
        session = Session(trainer, folder, tune_show.Silent(), args.save_every, is_stopped=lambda: stop.is_asked,
                          check=lambda: _check(args, asked))
        session.restore()
        clock = tune_show.Clock(trainer.num_steps, session.eval_every)
        with tune_show.shown(clock, asked.memory, trainer.step, as_json=args.json) as show:
            session.watcher = show
            show.event("start", folder=str(folder.path), steps=trainer.num_steps, step=trainer.step,
                       settings=dict(folder.identity.settings))
            end = session.run()
    if end == "interrupted":
        if args.json:
            tune_show.print_event("interrupted", step=trainer.step)
        terminal.note(f"stopped after step {trainer.step}, which is saved in {folder.path}\n"
                      "hint: the same command with --resume goes on from there")
        raise KeyboardInterrupt
    session.take_best()
    done = Finished(start.located, start.checkpoint, start.tokens, start.dataset, session, folder, end)
    return tune_finish.finish(args, done)


def _trainer(args: argparse.Namespace, start: Start, asked: tune_plan.Asked, plan: Plan,
             rows: Sequence[Row]) -> Trainer:
    checkpoint, machinery = start.checkpoint, asked.machinery
    machinery = replace(machinery, max_tokens=plan.choice.num_tokens, checkpointing=plan.choice.checkpointing)
    num_read = 0

    def put(name: str, weight: Weight) -> Weight:
        nonlocal num_read
        placed = torch_weights.place(name, weight, machinery.device, machinery.dtype, plan.choice.keep)
        num_read += torch.Size(weight.shape).numel()
        if num_read >= _READ_AHEAD:
            checkpoint.forget()
            num_read = 0
        return placed

    weights = place(checkpoint.weights(), put)
    checkpoint.forget()
    held_out = _spread(start.dataset.held_out, args.eval_rows)
    return Trainer(checkpoint.config, adapters.new(weights, asked.recipe), asked.recipe, machinery,
                   rows, held_out)


def _spread(rows: tuple[Row, ...], count: int) -> tuple[Row, ...]:
    """At most so many rows, evenly picked."""
    return rows if len(rows) <= count else tuple(rows[index * len(rows) // count] for index in range(count))


def _check(args: argparse.Namespace, asked: tune_plan.Asked) -> None:
    """The promise is kept, or the run ends: nobody runs into a limit that was stated."""
    if args.memory is not None and (peak := asked.peak()) > args.memory:
        raise MemoryPromiseError(peak, args.memory, "the most that was measured while training",
                                 hint="begin again with a smaller --batch-tokens or --checkpointing on")


@dataclass
class _Stop:
    """Whether Ctrl-C was pressed."""

    is_asked: bool = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True
        terminal.note("\nstopping after this step; Ctrl-C again leaves at once, and loses what came after the last "
                      "checkpoint")


@contextmanager
def _stop_on_interrupt() -> Iterator[_Stop]:
    stop = _Stop()
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
