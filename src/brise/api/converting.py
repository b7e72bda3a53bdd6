"""`brise.quantize` and `brise.export`: a model in fewer bits, or for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import overload

from brise.api.loading import Size, size
from brise.api.words import python_words
from brise.convert.engines import Engine, EngineExportOptions, ExportedForEngine, export_for
from brise.convert.export import ExportDtype, Exported, ExportFormat, ExportOptions
from brise.convert.export import export as export_model
from brise.convert.quantize import Quantized, QuantizeOptions
from brise.convert.quantize import quantize as quantize_model
from brise.errors import OutputError
from brise.watch import SILENT, Watcher


def quantize(model: str | Path, out: str | Path, *, mix: str = "Q4_K_M", calibration: str | Path | None = None,
             calibration_tokens: int = 65536, save_importance: str | Path | None = None,
             evaluate: str | Path | None = None, evaluation_tokens: int = 16384, requantize: bool = False,
             adapter: str | Path | None = None, any_base: bool = False, threads: int | None = None,
             memory: Size | None = None, watcher: Watcher = SILENT) -> Quantized:
    """Writes a model in fewer bits, as a GGUF file.

    Args:
        model: A name in the store, a .gguf file, or a folder with safetensors.
        out: The .gguf file to write; it must not be there.
        mix: Formats of the weights: "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", ...
        calibration: Text (or .jsonl) that shows which weights matter, or an importance matrix in a .gguf.
        calibration_tokens: So many tokens of it are run.
        save_importance: Keep the importance matrix in this .gguf.
        evaluate: Text on which original and result are compared: KL divergence, perplexity, equal first choices.
        evaluation_tokens: So many tokens of it are run.
        requantize: Take a source that is quantised already, although that loses more.
        adapter: Merge the adapter of this folder into the model first.
        any_base: Take it although its lineage names another model.
        threads: Threads of the kernels. Default: BRISE_THREADS, or one a core.
        memory: What this process may take.
        watcher: Hears how far the work has come.

    Raises:
        OutputError: A file is there already, or the disk is full.
        UnsupportedError: The mix, or the model, is not one that is written.
    """
    with python_words():
        return quantize_model(QuantizeOptions(
            model=str(model), out=Path(out), mix=mix, calibration=_path(calibration),
            calibration_tokens=calibration_tokens, save_importance=_path(save_importance), evaluate=_path(evaluate),
            evaluation_tokens=evaluation_tokens, requantize=requantize, adapter=_path(adapter), any_base=any_base,
            threads=threads, memory=size(memory, "memory")), watcher)


@overload
def export(model: str | Path, out: str | Path, *, format: ExportFormat = "hf", dtype: ExportDtype | None = None,
           adapter: str | Path | None = None, any_base: bool = False, merge: bool = False, engine: None = None,
           watcher: Watcher = SILENT) -> Exported: ...
@overload
def export(model: str | Path, out: str | Path, *, engine: Engine, dtype: ExportDtype | None = None,
           adapter: str | Path | None = None, any_base: bool = False, merge: bool = False, name: str | None = None,
           watcher: Watcher = SILENT) -> ExportedForEngine: ...
def export(model: str | Path, out: str | Path, *, format: ExportFormat | None = None, dtype: ExportDtype | None = None,
           adapter: str | Path | None = None, any_base: bool = False, merge: bool = False,
           engine: Engine | None = None, name: str | None = None,
           watcher: Watcher = SILENT) -> Exported | ExportedForEngine:
    """Writes a model in a plain number format for other programs, or all that another engine needs to serve it.

    Args:
        model: A name in the store, a .gguf file, or a folder with safetensors.
        out: The folder (hf, or for an engine) or the .gguf file to write; it must not be there.
        format: "hf" for a Hugging Face folder, "gguf", or "gguf-lora" for an adapter alone. Default: "hf".
        dtype: "bf16", "f16" or "f32". Default: the source's; f16 if its weights are blocks of few bits, f32 of an
            adapter alone.
        adapter: The folder of an adapter, to be merged, or written alone.
        any_base: Take it although its lineage names another model.
        merge: Put the adapter into the weights.
        engine: "vllm", "llama.cpp" or "ollama": a folder with model, adapter, chat template, and the command.
        name: What that engine's server calls the model. Default: the run's or the model's name.
        watcher: Hears how far the work has come.

    Raises:
        OutputError: Something is there already, the disk is full, or arguments contradict each other.
        UnsupportedError: The engine cannot serve this adapter, chat format or model.
    """
    with python_words():
        if engine is None:
            if name is not None:
                raise OutputError("--name needs --for ENGINE")
            return export_model(ExportOptions(str(model), Path(out), format or "hf", dtype, _path(adapter), any_base,
                                              merge), watcher)
        if format is not None:
            raise OutputError("--format and --for are both given: an engine has its own format")
        return export_for(EngineExportOptions(str(model), Path(out), engine, _path(adapter), any_base, merge, dtype,
                                              name), watcher)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
