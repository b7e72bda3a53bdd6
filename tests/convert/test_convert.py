"""brise.convert as functions: what the options refuse, and what is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from brise.checkpoint.open import open_checkpoint
from brise.convert.export import ExportOptions, export
from brise.convert.quantize import QuantizeOptions, quantize
from brise.errors import BriseError, OutputError
from brise.watch import Advance
from tests.checkpoint.make_gguf import write_tiny


class Bars:
    """A watcher that adds up what each task has done."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    def note(self, text: str) -> None:
        """Not asked for here."""

    @contextmanager
    def progress(self, task: str, total: int, unit: str) -> Iterator[Advance]:
        self.done[task] = 0

        def advance(count: int) -> None:
            self.done[task] += count

        yield advance
        assert self.done[task] == total and unit == "bytes"


def test_a_model_is_quantized_and_reported(tmp_path: Path) -> None:
    source, bars = write_tiny(tmp_path / "tiny.gguf", "llama"), Bars()
    made = quantize(QuantizeOptions(str(source), tmp_path / "small.gguf", mix="Q8_0", requantize=True, threads=1), bars)
    assert made.written.path == tmp_path / "small.gguf" and bars.done["writing"] > 0
    report = made.as_json()
    assert report["mix"] == "Q8_0" and report["quality"] is None and report["bytes"] == made.written.path.stat().st_size


def test_a_model_is_exported_once(tmp_path: Path) -> None:
    options = ExportOptions(str(write_tiny(tmp_path / "tiny.gguf", "llama")), tmp_path / "folder", dtype="f16")
    made = export(options)
    assert made.dtype == "F16" and made.num_bytes > 0 and open_checkpoint(made.out).kind == "hf"
    with pytest.raises(OutputError, match="is there already"):
        export(options)


@pytest.mark.parametrize(("kind", "fields", "message"), [
    (QuantizeOptions, {"out": Path("x.bin")}, "its name must end in .gguf"),
    (QuantizeOptions, {"mix": "Q9"}, "the mix is 'Q9', allowed are Q4_K_M"),
    (QuantizeOptions, {"save_importance": Path("i.gguf")}, "--save-importance needs --calibration"),
    (QuantizeOptions, {"any_base": True}, "--any-base needs --adapter"),
    (ExportOptions, {"merge": True}, "--merge needs --adapter"),
    (ExportOptions, {"adapter": Path("a")}, "without a way to export it"),
    (ExportOptions, {"out": Path("x.bin"), "format": "gguf"}, "its name must end in .gguf")])
def test_options_that_cannot_be_are_refused(kind: type, fields: dict[str, object], message: str) -> None:
    with pytest.raises(BriseError, match=message):
        kind(**{"model": "m", "out": Path("x.gguf"), **fields})
