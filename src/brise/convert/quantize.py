"""A model in fewer bits, as a GGUF file, and what that did to it.

Calibration and comparison run the model within a memory limit, and the model comes from the store. So the use case
lies above engine/, memory/ and hub/, and neither in quant/ nor in checkpoint/.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brise import settings
from brise.backends import num_cores
from brise.checkpoint.gguf.imatrix import load_importance, save_importance
from brise.checkpoint.gguf.write_mmproj import needs_projector, projector_path, write_projector
from brise.checkpoint.read_original import Original, open_original
from brise.checkpoint.write_gguf import BLOCK_BYTES, Written, planned_bytes, refuse_blocks, write_mix
from brise.convert.merge_adapter import with_adapter
from brise.convert.model_runs import ModelRuns, TokenWindows
from brise.engine.scoring import WINDOW
from brise.errors import OutputError, UnsupportedError
from brise.files.atomic import refuse_existing
from brise.hub.locate import find_model
from brise.memory.process import keep_small, peak_bytes, resident_bytes
from brise.quant.importance import Importance
from brise.quant.quality import QuantQuality
from brise.quant.recipe import MIXES
from brise.quant.rows import format_of, matrix_shape, row_bytes
from brise.settings import Settings
from brise.watch import SILENT, Watcher, size_text


@dataclass(frozen=True)
class QuantizeOptions:
    """The defaults are those of `brise quantize`, and so are the meanings.

    `model` is a name in the store, a .gguf file or a folder with safetensors; `out` the .gguf file to write. `mix` is
    one of recipe.MIXES but F32. `calibration` is text (or .jsonl) that shows which weights matter, or an importance
    matrix in a .gguf, which `save_importance` writes. `evaluate` is text on which original and result are compared.
    """

    model: str
    out: Path
    mix: str = "Q4_K_M"
    calibration: Path | None = None
    calibration_tokens: int = 65536
    save_importance: Path | None = None
    evaluate: Path | None = None
    evaluation_tokens: int = 16384
    requantize: bool = False  # takes a source that is quantised already
    adapter: Path | None = None  # is merged into the model first
    any_base: bool = False  # takes the adapter although its lineage names another model
    threads: int | None = None  # BRISE_THREADS, or one a core
    memory: int | None = None  # bytes

    def __post_init__(self) -> None:
        if self.mix not in MIXES or self.mix == "F32":
            allowed = ", ".join(mix for mix in MIXES if mix != "F32")
            raise UnsupportedError(f"the mix is {self.mix!r}, allowed are {allowed}")
        if self.out.suffix != ".gguf":
            raise OutputError(f"OUT is {str(self.out)!r}, its name must end in .gguf")
        if self.save_importance is not None and self.calibration is None:
            raise OutputError("--save-importance needs --calibration FILE, there is nothing to save")
        if self.any_base and self.adapter is None:
            raise OutputError("--any-base needs --adapter FOLDER")


@dataclass(frozen=True)
class Quantized:
    """What was written, with what, and how far its predictions are from the original's if that was asked for."""

    options: QuantizeOptions
    written: Written
    original_bytes: int  # of its tensors
    importance: Importance | None
    quality: QuantQuality | None
    evaluated: TokenWindows | None
    seconds: float
    peak_memory_bytes: int

    def as_json(self) -> dict[str, Any]:
        """Everything, as `brise quantize --json` prints it."""
        written, importance = self.written, self.importance
        return {
            "model": self.options.model, "out": str(self.options.out), "mix": self.options.mix,
            "original_bytes": self.original_bytes, "bytes": written.size, "weights": written.num_weights,
            "bits_per_weight": written.bits_per_weight, "tensors": dict(written.formats),
            "importance": None if importance is None else {
                "source": importance.source, "tokens": importance.num_tokens, "tensors": len(importance.sums)},
            "quality": None if self.quality is None or self.evaluated is None else {
                "text": str(self.evaluated.path), "tokens_used": self.evaluated.num_tokens,
                "tokens_in_text": self.evaluated.total_tokens} | asdict(self.quality),
            "seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes}


def quantize(options: QuantizeOptions, watcher: Watcher = SILENT) -> Quantized:
    """Writes the model; OutputError if a file is there already, before any work."""
    settings_ = settings.read()
    for path in (options.out, projector_path(options.out), options.save_importance):
        if path is not None:
            refuse_existing(path)
    if options.memory is not None:
        keep_small()
    original = _open(options, settings_)
    runs = ModelRuns(original, options.threads or settings_.threads or num_cores(), options.memory, watcher)
    started = time.perf_counter()
    text = None
    if options.evaluate is not None:
        text = runs.text(options.evaluate, options.evaluation_tokens)
        runs.check_evaluation()
    importance = _importance(options, runs)
    written = _write(options, original, importance, runs.num_threads, watcher)
    quality = None if text is None else runs.evaluate(text, written.path)
    return Quantized(options, written, _tensor_bytes(original), importance, quality, text,
                     time.perf_counter() - started, peak_bytes())


def _open(options: QuantizeOptions, settings_: Settings) -> Original:
    """A source of blocks is refused before an adapter is merged, which makes float32 of its matrices."""
    located = find_model(options.model, settings_)
    original = open_original(located.path)
    if not options.requantize:
        refuse_blocks(original, options.mix if options.adapter is None else "F32")
    return with_adapter(original, located, options.adapter, any_base=options.any_base)


def _importance(options: QuantizeOptions, runs: ModelRuns) -> Importance | None:
    if options.calibration is None:
        return None
    if options.calibration.suffix == ".gguf":
        return load_importance(options.calibration)
    importance = runs.calibrate(runs.text(options.calibration, options.calibration_tokens))
    if options.save_importance is not None:
        save_importance(options.save_importance, importance, WINDOW)
    return importance


def _write(options: QuantizeOptions, original: Original, importance: Importance | None, threads: int,
           watcher: Watcher) -> Written:
    if options.memory is not None and (needed := resident_bytes() + BLOCK_BYTES) > options.memory:
        raise UnsupportedError(f"quantising needs {size_text(needed)}, --memory allows {size_text(options.memory)}")
    with watcher.progress("writing", planned_bytes(original, options.mix), "bytes") as advance:
        written = write_mix(original, options.out, options.mix, importance, requantize=options.requantize,
                            threads=threads, wrote=advance)
    if needs_projector(original):
        write_projector(original, projector_path(options.out))
    return written


def _tensor_bytes(original: Original) -> int:
    total = 0
    for tensor in original.tensors:
        rows, cols = matrix_shape(tensor.weight.shape)
        total += rows * row_bytes(format_of(tensor.weight), cols)
    return total
