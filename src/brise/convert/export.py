"""A model in a plain number format for other programs: a Hugging Face folder, a GGUF file, or an adapter alone.

It needs the model store and so lies above checkpoint/, which knows files only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brise import settings
from brise.checkpoint.gguf.write_adapter import write_gguf_adapter
from brise.checkpoint.gguf.write_mmproj import needs_projector, projector_path, write_projector
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import planned_bytes, write_mix
from brise.checkpoint.write_hf import exported_bytes, plain_format, write_hf
from brise.convert.merge_adapter import read_checked, with_adapter
from brise.errors import OutputError
from brise.files.atomic import refuse_existing
from brise.files.digests import Located
from brise.hub.locate import find_model
from brise.watch import SILENT, Watcher

ExportFormat = Literal["hf", "gguf", "gguf-lora"]
ExportDtype = Literal["bf16", "f16", "f32"]


@dataclass(frozen=True)
class ExportOptions:
    """The defaults are those of `brise export`, and so are the meanings.

    `model` is a name in the store, a .gguf file or a folder with safetensors; `out` the folder (hf) or .gguf file to
    write. `dtype` None is the source's, F16 if its weights are blocks of few bits, F32 of an adapter alone. An
    `adapter` goes into the weights with `merge`, or is written alone in the format "gguf-lora".
    """

    model: str
    out: Path
    format: ExportFormat = "hf"
    dtype: ExportDtype | None = None
    adapter: Path | None = None
    any_base: bool = False  # takes the adapter although its lineage names another model
    merge: bool = False

    def __post_init__(self) -> None:
        if self.format != "hf" and self.out.suffix != ".gguf":
            raise OutputError(f"OUT is {str(self.out)!r}, its name must end in .gguf")
        if self.adapter is None:
            for option, is_given in (("--merge", self.merge), ("--any-base", self.any_base),
                                     ("--format gguf-lora", self.format == "gguf-lora")):
                if is_given:
                    raise OutputError(f"{option} needs --adapter FOLDER")
        elif self.merge == (self.format == "gguf-lora"):
            raise OutputError("--adapter is given with both --merge and --format gguf-lora" if self.merge
                              else "--adapter is given without a way to export it",
                              hint="give --merge for the model with the adapter in its weights, or --format gguf-lora "
                                   "for the adapter alone; PEFT reads the adapter's folder as it is")


@dataclass(frozen=True)
class Exported:
    """What was written: its number format and bytes, and the file of the encoder where that is one of its own.
    """

    out: Path
    dtype: str
    num_bytes: int
    mmproj: Path | None = None


def export(options: ExportOptions, watcher: Watcher = SILENT) -> Exported:
    """Writes the model, or the adapter; OutputError if something is there already."""
    refuse_existing(options.out)
    located = find_model(options.model, settings.read())
    if options.format == "gguf-lora":
        return _export_adapter(options, located)
    original = open_original(located.path)
    dtype = options.dtype.upper() if options.dtype else plain_format(original)
    original = with_adapter(original, located, options.adapter, any_base=options.any_base)
    if options.format == "hf":
        with watcher.progress("writing", exported_bytes(original, dtype), "bytes") as advance:
            return Exported(options.out, dtype, write_hf(original, options.out, dtype, advance))
    with watcher.progress("writing", planned_bytes(original, dtype), "bytes") as advance:
        size = write_mix(original, options.out, dtype, requantize=True, wrote=advance).size
    if not needs_projector(original):
        return Exported(options.out, dtype, size)
    write_projector(original, projector_path(options.out))
    return Exported(options.out, dtype, size, projector_path(options.out))


def _export_adapter(options: ExportOptions, located: Located) -> Exported:
    assert options.adapter is not None
    original, dtype = open_original(located.path), (options.dtype or "f32").upper()
    adapter, lineage = read_checked(options.adapter, original, located, any_base=options.any_base)
    return Exported(options.out, dtype, write_gguf_adapter(options.out, adapter, lineage, original.config, dtype,
                                                           is_tied=original.is_tied))
