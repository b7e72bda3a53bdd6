"""The end of a run of `brise tune`: the adapter with its lineage, the loss curve, and what to do with them."""

from __future__ import annotations

import argparse
import datetime
from dataclasses import dataclass
from pathlib import Path

import torch

from brise.backends.torch.ops import TorchOps
from brise.checkpoint.adapters.lineage import Lineage, versions
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.convert_source import open_original
from brise.checkpoint.export import plain_format, write_hf
from brise.checkpoint.gguf.write_mmproj import has_own_vision, projector_path, write_projector
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.checkpoint.transcode import write_mix
from brise.cli import parity_run, terminal, tune_options, tune_show
from brise.data.prepare import Dataset
from brise.files.digests import Located
from brise.text.load import Tokens
from brise.tune import run_folder
from brise.tune.adapters import with_numbers
from brise.tune.curve import Curve
from brise.tune.parity.parity import ParityReport, Tolerance
from brise.tune.parity.replay import replay_in_memory, replay_of_written
from brise.tune.parity.trained import TorchSide
from brise.tune.run_folder import RunFolder
from brise.tune.session import End, TrainingSession

CURVE = "curve.png"


@dataclass(frozen=True)
class Finished:
    """A run that is over, its best weights in the trainer."""

    located: Located
    checkpoint: Checkpoint
    tokens: Tokens
    dataset: Dataset
    session: TrainingSession
    folder: RunFolder
    end: End


def finish(args: argparse.Namespace, done: Finished) -> int:
    """Writes what the run made, and says where it is; exit status 1 if what is served is not what was trained."""
    folder = done.folder.path
    curve = Curve.of(run_folder.read_log(folder))
    curve.write_png(folder / CURVE, f"{done.located.name}, {args.data[0].name}")
    made = _made(done)
    if not made.exists():  # a run that had ended already
        _write(done, made)
    report = _parity(args, done, made)
    best = done.session.best
    if args.json:
        tune_show.print_event(
            "done", end=done.end, step=done.session.trainer.step, **{_kind(done): str(made)}, curve=str(folder / CURVE),
            best=None if best is None else {"step": best.step, "loss": best.loss},
            seconds=round(done.session.seconds, 3), tokens=done.session.tokens,
            parity=None if report is None else report.as_json())
        return 0 if report is None or report.passed else 1
    for line in curve.lines():
        terminal.note(line)
    if report is not None:
        parity_run.show(report)
    terminal.result(_words(args, done, made))
    return 0 if report is None or report.passed else 1


def _parity(args: argparse.Namespace, done: Finished, made: Path) -> ParityReport | None:
    """What is served beside what was trained; None where nothing is to be replayed."""
    trainer = done.session.trainer
    if not args.parity_rows:
        return None
    machinery = trainer.machinery
    side = TorchSide(done.checkpoint.config, trainer.trained.weights, TorchOps(machinery.device, machinery.dtype))
    threads = torch.get_num_threads()
    if trainer.recipe.method == "full":
        replay = replay_of_written(open_checkpoint(made), side, done.tokens, threads)
    else:
        replay = replay_in_memory(done.checkpoint, side, trainer.trained.low_ranks(), done.tokens, threads)
    options = tune_options.data_options_of(args, done.checkpoint.config.max_context)
    return parity_run.compare(replay, done.dataset, args.parity_rows, Tolerance(), options, machinery.features_of)


def _write(done: Finished, path: Path) -> None:
    recipe, identity = done.session.trainer.recipe, done.folder.identity
    metrics = {"steps": done.session.trainer.step, "tokens": done.session.tokens,
               "seconds": round(done.session.seconds, 3)}
    if done.session.best is not None:
        metrics |= {"held_out_loss": done.session.best.loss, "best_step": done.session.best.step}
    lineage = Lineage(
        done.located.name, identity.base, identity.data, dict(identity.settings), versions("torch"), recipe.seed,
        metrics, {used.right.provider: f"{used.right.basis} ({used.right.date})" for used in done.dataset.rights},
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    if recipe.method == "full":
        _write_whole(done, path, lineage)
        return
    adapter = AdapterFile(done.session.trainer.trained.low_ranks(), recipe.rank, recipe.alpha, dropout=recipe.dropout,
                          base_name=done.located.name)
    write_adapter(path, adapter, lineage, done.checkpoint.config, is_wrapped=done.checkpoint.vision is not None)


def _write_whole(done: Finished, path: Path, lineage: Lineage) -> None:
    """In the layout of the base, in its plain format or, if its weights are blocks of few bits, in F16."""
    original = open_original(done.located.path)
    numbers = {name: parameter.detach().cpu().numpy()
               for name, parameter in done.session.trainer.trained.parameters.items()}
    trained, dtype = with_numbers(original, numbers, lineage), plain_format(original)
    if original.kind != "gguf":
        write_hf(trained, path, dtype)
        return
    write_mix(trained, path, dtype, requantize=True)
    if original.vision is not None and not has_own_vision(original):
        write_projector(original, projector_path(path))


def _kind(done: Finished) -> str:
    return "model" if done.session.trainer.recipe.method == "full" else "adapter"


def _made(done: Finished) -> Path:
    """Where the adapter, or the model that was trained whole, is."""
    name = _kind(done)
    return done.folder.path / (f"{name}.gguf" if name == "model" and done.checkpoint.kind == "gguf" else name)


def _words(args: argparse.Namespace, done: Finished, made: Path) -> str:
    session = done.session
    why = " early, as evaluation got no better" if done.end == "early" else ""
    lines = [f"ended{why} after {session.trainer.step} steps, {session.tokens} tokens in "
             f"{tune_show.duration(session.seconds)}"]
    if session.best is not None:
        lines.append(f"held-out loss {session.best.loss:.4f}, after step {session.best.step}: these weights are kept")
    name = "".join(char if char.isalnum() or char in "-_." else "-" for char in done.folder.path.resolve().name)
    serves = f"{args.model} --adapter {name}={made}" if _kind(done) == "adapter" else str(made)
    lines += [f"{_kind(done) + ':':<8} {made}", f"curve:   {done.folder.path / CURVE}",
              f"serve:   brise serve {serves}"]
    return "\n".join(lines)
