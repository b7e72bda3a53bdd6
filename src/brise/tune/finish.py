"""Finishing a run: writing the adapter with its lineage, or the model, and the loss curve, and checking parity.

Needs the extra `tune`.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from brise.backends.torch.ops import TorchOps
from brise.checkpoint.adapters.lineage import Lineage, versions
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.gguf.write_mmproj import needs_projector, projector_path, write_projector
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import write_mix
from brise.checkpoint.write_hf import plain_format, write_hf
from brise.data.count_ngrams import CountedRow, NgramOptions, count_ngrams
from brise.data.ngrams import FILE as NGRAMS_FILE
from brise.data.prepare import Dataset
from brise.files.atomic import staged_file
from brise.files.digests import Located
from brise.memory.training_plan import TrainingPlan
from brise.text.load import Tokens
from brise.tune import run_folder
from brise.tune.adapters import with_numbers
from brise.tune.curve import Curve
from brise.tune.options import TuneOptions
from brise.tune.parity.parity import ParityReport, Tolerance
from brise.tune.parity.replay import TorchSide, compare_rows, replay_in_memory, replay_of_written
from brise.tune.run_folder import RunFolder
from brise.tune.session import TrainingSession
from brise.tune.watch import End, TuneResult
from brise.watch import Watcher

CURVE = "curve.png"


@dataclass(frozen=True)
class FinishedRun:
    """A run that is over, its best weights in the trainer."""

    located: Located
    checkpoint: Checkpoint
    tokens: Tokens
    dataset: Dataset
    plan: TrainingPlan
    session: TrainingSession
    folder: RunFolder
    end: End

    @property
    def is_whole(self) -> bool:
        """Whether all weights were trained, which makes a model and no adapter."""
        return self.session.trainer.recipe.method == "full"

    @property
    def made(self) -> Path:
        """The path of the adapter, or of the model that was trained whole."""
        if not self.is_whole:
            return self.folder.path / "adapter"
        return self.folder.path / ("model.gguf" if self.checkpoint.kind == "gguf" else "model")


def finish(options: TuneOptions, run: FinishedRun, watcher: Watcher) -> TuneResult:
    """Writes what the run made, and compares what is served with what was trained."""
    folder, session = run.folder.path, run.session
    curve = Curve.of(run_folder.read_log(folder))
    curve.write_png(folder / CURVE, f"{run.located.name}, {options.data[0].name}")
    result = TuneResult(
        folder, run.end, run.dataset.report, run.plan, session.trainer.step, session.tokens, session.seconds,
        session.before, session.best, session.is_worse, curve=curve, curve_png=folder / CURVE)
    if session.is_worse:
        return result
    result = replace(result, adapter=None if run.is_whole else run.made, model=run.made if run.is_whole else None)
    made = {"step": session.trainer.step, "best_step": None if session.best is None else session.best.step}
    if run.made.exists() and run.folder.made() not in (None, made):  # from before it went on
        for path in (run.made, projector_path(run.made), folder / NGRAMS_FILE):
            run_folder.remove(path)
    if not run.made.exists():  # a run that had ended already
        ngrams = _ngrams(run, options.ngrams)
        _write(run, _lineage(run, result, ngrams), ngrams)
        run.folder.keep_made(made)
    return result if not options.parity_rows else replace(result, parity=_parity(options, run, watcher))


def _parity(options: TuneOptions, run: FinishedRun, watcher: Watcher) -> ParityReport:
    """Compares what is served with what was trained."""
    trainer = run.session.trainer
    compute = trainer.compute
    side = TorchSide(run.checkpoint.config, trainer.trained.weights, TorchOps(compute.device, compute.dtype))
    threads = torch.get_num_threads()
    if run.is_whole:
        replay = replay_of_written(open_checkpoint(run.made), side, run.tokens, threads)
    else:
        replay = replay_in_memory(run.checkpoint, side, trainer.trained.low_ranks(), run.tokens, threads)
    return compare_rows(replay, run.dataset, options.parity_rows, Tolerance(),
                        options.data_options(run.checkpoint.config.max_context), watcher, compute.features_of)


def _ngrams(run: FinishedRun, options: NgramOptions) -> Mapping[str, bytes]:
    """The table of n-grams of the trained answers, by its file's name; empty where none is wanted."""
    if not options.nbytes:
        return {}
    conversations = {example.place: example.conversation for example in run.dataset.train_examples}
    rows = (CountedRow(row, conversations.get(row.place, row.place)) for row in run.dataset.train)
    return {NGRAMS_FILE: count_ngrams(rows, run.tokens.tokenizer, "rows", options)}


def _lineage(run: FinishedRun, result: TuneResult, ngrams: Mapping[str, bytes]) -> Lineage:
    recipe, identity = run.session.trainer.recipe, run.folder.identity
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in ngrams.items()}
    rights = {used.right.provider: f"{used.right.basis} ({used.right.date})" for used in run.dataset.rights}
    return Lineage(
        run.located.name, identity.base, identity.data, {**identity.settings, **digests}, versions("torch"),
        recipe.seed, result.metrics, rights, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))


def _write(run: FinishedRun, lineage: Lineage, ngrams: Mapping[str, bytes]) -> None:
    """An adapter has the table in its folder. A model trained whole, which may be one file, has it beside it."""
    trainer = run.session.trainer
    if run.is_whole:
        for name, content in ngrams.items():
            with staged_file(run.folder.path / name, len(content), replaces=True) as file:
                file.write(content)
        _write_whole(run, lineage)
        return
    recipe = trainer.recipe
    adapter = AdapterFile(trainer.trained.low_ranks(), recipe.rank, recipe.alpha, dropout=recipe.dropout,
                          base_name=run.located.name)
    write_adapter(run.made, adapter, lineage, run.checkpoint.config, is_wrapped=run.checkpoint.vision is not None,
                  beside=ngrams)


def _write_whole(run: FinishedRun, lineage: Lineage) -> None:
    """In the layout of the base, in its plain format or, if its weights are blocks of few bits, in F16."""
    original = open_original(run.located.path)
    numbers = {name: parameter.detach().cpu().numpy()
               for name, parameter in run.session.trainer.trained.parameters.items()}
    trained, dtype = with_numbers(original, numbers, lineage), plain_format(original)
    if original.kind != "gguf":
        write_hf(trained, run.made, dtype)
        return
    write_mix(trained, run.made, dtype, requantize=True)
    if needs_projector(original):
        write_projector(original, projector_path(run.made))
