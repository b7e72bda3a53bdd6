"""Choosing the type of numbers by time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brise.checkpoint.open import open_checkpoint
from brise.tune import pick_dtype
from tests.checkpoint.make_gguf import write_tiny
from tests.cpu_time import cpu_s


@pytest.mark.parametrize(("times", "dtype"), [((1.0, 0.8), torch.bfloat16), ((1.0, 0.95), torch.float32),
                                              ((1.0, 3.0), torch.float32)])
def test_bfloat16_is_taken_only_where_it_is_clearly_faster(
        times: tuple[float, float], dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(zip((torch.float32, torch.bfloat16), times, strict=True))
    monkeypatch.setattr(pick_dtype, "_times", lambda *_: given)
    layer = open_checkpoint(write_tiny(tmp_path / "tiny.gguf", "llama")).weights().layers[0]
    found = pick_dtype.measure(layer, torch.device("cpu"))
    assert found.dtype == dtype
    assert found.rates["float32"] / found.rates["bfloat16"] == pytest.approx(times[1] / times[0])


def test_it_measures_and_says_what_it_measured(tmp_path: Path) -> None:
    layer = open_checkpoint(write_tiny(tmp_path / "tiny.gguf", "llama")).weights().layers[0]
    found: list[pick_dtype.Speed] = []
    assert cpu_s(lambda: found.append(pick_dtype.measure(layer, torch.device("cpu"), seconds=0.02))) < 2.0
    assert "measured: float32" in str(found[0]) and str(found[0]).startswith(("float32", "bfloat16"))
