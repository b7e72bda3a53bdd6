"""`brise.quantize` and `brise.export`: a model in fewer bits, or for other programs."""

from __future__ import annotations

from pathlib import Path

from brise.api.loading import Size, size
from brise.api.words import python_words
from brise.convert.export import ExportDtype, Exported, ExportFormat, ExportOptions
from brise.convert.export import export as export_model
from brise.convert.quantize import Quantized, QuantizeOptions
from brise.convert.quantize import quantize as quantize_model
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


def export(model: str | Path, out: str | Path, *, format: ExportFormat = "hf", dtype: ExportDtype | None = None,
           adapter: str | Path | None = None, any_base: bool = False, merge: bool = False,
           watcher: Watcher = SILENT) -> Exported:
    """Writes a model in a plain number format for other programs.

    Args:
        model: A name in the store, a .gguf file, or a folder with safetensors.
        out: The folder (hf) or the .gguf file to write; it must not be there.
        format: "hf" for a Hugging Face folder, "gguf", or "gguf-lora" for an adapter alone.
        dtype: "bf16", "f16" or "f32". Default: the source's; f16 if its weights are blocks of few bits, f32 of an
            adapter alone.
        adapter: The folder of an adapter, to be merged, or written alone.
        any_base: Take it although its lineage names another model.
        merge: Put the adapter into the weights.
        watcher: Hears how far the work has come.

    Raises:
        OutputError: Something is there already, the disk is full, or arguments contradict each other.
    """
    with python_words():
        return export_model(ExportOptions(str(model), Path(out), format, dtype, _path(adapter), any_base, merge),
                            watcher)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
