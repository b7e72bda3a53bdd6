"""Vision encoders in GGUF files give the features of the same encoder elsewhere; what lies or does not fit is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceBackend
from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.read_mmproj import open_vision
from brise.engine.vision import LoadedVision
from brise.engine.vision import open_vision as load_vision
from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.models.pixtral import VisionConfig, VisionWeights
from tests import tolerances
from tests.checkpoint.make_gguf_vision import break_row, write_mmproj, write_model
from tests.goldens.vision import VisionGolden, read_vision

# A weight of 8 bits is off by up to 1/254 of its block's largest, the features of ours by a few percent.
Q8_FEATURES = 0.05


@pytest.fixture(scope="module")
def golden() -> VisionGolden:
    return read_vision()


def beside(folder: Path, golden: VisionGolden, *, is_named: bool = True, format: str = "F32",
           changes: Mapping[str, object] | None = None,
           without: str = "") -> tuple[VisionConfig, VisionWeights] | None:
    """The encoder of a model with an mmproj file beside it."""
    model = open_gguf(write_model(folder / "model.gguf"))
    path = folder / "mmproj-model.gguf"
    projector = open_gguf(write_mmproj(path, golden, format=format, changes=changes, without=without))
    return open_vision(model, projector, golden.text.config, is_named=is_named)


def loaded(found: tuple[VisionConfig, VisionWeights] | None) -> LoadedVision:
    assert found is not None
    return load_vision(*found, ReferenceBackend())


def test_an_mmproj_file(tmp_path: Path, golden: VisionGolden) -> None:
    vision = loaded(beside(tmp_path, golden))
    assert replace(vision.config, norm_eps=golden.config.norm_eps) == golden.config  # files have it as float32
    features = np.concatenate(vision.encode(golden.images))
    assert np.abs(features - golden.features).max() < tolerances.VISION_FEATURES
    assert vision.break_row is not None and (vision.break_row == break_row(golden)).all()


@pytest.mark.parametrize("format", ["F16", "Q8_0"])
def test_formats_of_an_mmproj_file(tmp_path: Path, golden: VisionGolden, format: str) -> None:
    features = np.concatenate(loaded(beside(tmp_path, golden, format=format)).encode(golden.images))
    limit = tolerances.VISION_FEATURES if format == "F16" else Q8_FEATURES * np.abs(golden.features).max()
    assert np.abs(features - golden.features).max() < limit


def test_an_encoder_inside_the_model(tmp_path: Path, golden: VisionGolden) -> None:
    model = open_gguf(write_model(tmp_path / "model.gguf", golden))
    vision = loaded(open_vision(model, None, golden.text.config, is_named=False))
    assert vision.config == golden.config and vision.break_row is None
    features = np.concatenate(vision.encode(golden.images))
    assert np.abs(features - golden.features).max() < tolerances.VISION_FEATURES


def test_a_model_without_an_encoder(tmp_path: Path, golden: VisionGolden) -> None:
    assert open_vision(open_gguf(write_model(tmp_path / "model.gguf")), None, golden.text.config, is_named=True) is None


def test_another_models_mmproj_is_passed_over_unless_it_is_named(tmp_path: Path, golden: VisionGolden) -> None:
    changes = {"clip.vision.projection_dim": 64}
    assert beside(tmp_path, golden, is_named=False, changes=changes) is None
    with pytest.raises(CheckpointError, match="mmproj-model.gguf: clip.vision.projection_dim is 64, allowed is 48"):
        beside(tmp_path, golden, changes=changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"clip.projector_type": "mlp"}, "type 'mlp', allowed is 'pixtral'"),
    ({"clip.use_gelu": True}, "use_gelu"),
    ({"clip.vision.image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
    ({"clip.vision.attention.head_count": 3}, "head_count"),
    ({"clip.vision.block_count": 3}, r"v.blk.2.ln1.weight is missing"),
    ({"clip.vision.block_count": 1}, r"v.blk.1"),
    ({"clip.vision.feed_forward_length": 97}, r"shape of v.blk.0.ffn_gate.weight"),
    ({"clip.vision.n_wa_pattern": 4}, "n_wa_pattern"),
    ({"clip.vision.patch_size": None}, "patch_size is missing")])
def test_what_does_not_fit_is_named(tmp_path: Path, golden: VisionGolden, changes: dict[str, object],
                                    message: str) -> None:
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        beside(tmp_path, golden, changes=changes)


def test_a_missing_tensor_is_named(tmp_path: Path, golden: VisionGolden) -> None:
    with pytest.raises(BriseError, match="mm.patch_merger.weight is missing"):
        beside(tmp_path, golden, without="mm.patch_merger.weight")
