"""Loading a folder takes little more memory than the placed weights, and gives a model that answers."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from weakref import ref

import numpy as np
import pytest

from brise.engine.model import LoadedModel, load
from brise.errors import CheckpointError, UnsupportedError
from brise.models.batch import Batch
from brise.models.weights import Array
from tests.backends.vulkan.driver import require_driver
from tests.checkpoint import make_folder as make
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_tokenizer import write_tokenizer

BENCH = Path(__file__).parents[2] / "bench"
LAYERS, WIDTH, FFN = 6, 1024, 4096
LAYER_NUMBERS = WIDTH * (1024 + 512 + 512 + 1024 + 3 * FFN)  # q, k, v, o and the feed-forward


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "layer_bytes"), [("BF16", 2 * LAYER_NUMBERS), ("FP8", LAYER_NUMBERS)])
def test_into_four_bits_the_peak_is_the_result_and_a_layer(tmp_path: Path, dtype: str, layer_bytes: int) -> None:
    folder = tmp_path / dtype
    run("synthesize_folder.py", "--layers", LAYERS, "--dtype", dtype, folder)
    measured = json.loads(run("loading.py", "--rounds", 1, "--json", f"{folder}:Q4_0"))[f"{folder}:Q4_0"]
    assert measured["placed"] < 0.65 * LAYERS * LAYER_NUMBERS + WIDTH * 16384 * 0.9
    assert measured["peak"] <= 1.1 * measured["placed"] + layer_bytes, measured


@pytest.mark.parametrize("write", [
    lambda folder, model: make.write_hf(folder, model, "old"), make.write_native], ids=["hf", "native"])
@pytest.mark.parametrize("name", ["vision", "ministral3_yarn0_tied"])
def test_a_folder_is_loaded_with_all_that_it_has(tmp_path: Path, write: object, name: str) -> None:
    assert callable(write)
    model = loaded(write(tmp_path / "Tiny", make.tiny(name)))
    assert model.name == "Tiny" and (model.vision is not None) == (name == "vision")
    assert np.isfinite(logits_of(model)).all()


def test_fewer_bits_change_little(tmp_path: Path) -> None:
    # Only wo has rows of a multiple of 32 numbers: the rest stays as it is.
    folder = write_tokenizer(make.write_hf(tmp_path, make.tiny("ministral3_yarn0_untied")), 97)
    exact = logits_of(load(folder))
    eight, four = (logits_of(load(folder, weights=mix)) for mix in ("Q8_0", "Q4_0"))
    assert 0 < np.abs(eight - exact).max() <= np.abs(four - exact).max() < np.abs(exact).max()


@pytest.mark.parametrize("mix", ["Q9_0", "q4_0", ""])
def test_an_unknown_mix_is_refused_by_name(tmp_path: Path, mix: str) -> None:
    folder = write_tokenizer(make.write_hf(tmp_path, make.tiny("llama_tied")), 97)
    with pytest.raises(UnsupportedError, match=f"weights in '{mix}' are asked for, allowed are Q4_K_M"):
        load(folder, weights=mix)


def test_a_nan_is_refused_while_quantizing(tmp_path: Path) -> None:
    model = make.tiny("ministral3_yarn0_untied")
    model.arrays["layers.1.wo"][3, 4] = np.nan
    folder = write_tokenizer(make.write_hf(tmp_path, model), 97)
    with pytest.raises(CheckpointError, match=r"blk.1.attn_output.weight has a number that is not finite"):
        load(folder, weights="Q8_0")


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer: neither tekken.json nor tokenizer.json"):
        load(make.write_hf(tmp_path, make.tiny("llama_tied")))


@pytest.mark.parametrize("device", ["cpu", "vulkan"])
def test_a_model_is_freed_with_its_last_reference(tmp_path: Path, device: str) -> None:
    if device == "vulkan":
        require_driver()
    model = load(write_tiny(tmp_path / "tiny.gguf", "llama"), threads=1, device=device)
    backend = ref(model.backend)
    gc.disable()  # a cycle keeps the memory of a whole model until the collector runs
    try:
        model.backend.runner(model.config, model.weights, 16)
        del model
        assert backend() is None
    finally:
        gc.enable()


def loaded(folder: Path) -> LoadedModel:
    return load(write_tokenizer(folder, 97))


def logits_of(model: LoadedModel) -> Array:
    tokens = np.arange(20, 40, dtype=np.int32)
    batch = Batch(tokens, np.arange(20, dtype=np.int32), np.array([0, 20], np.int32), np.arange(20, dtype=np.int32))
    return model.backend.runner(model.config, model.weights, 32).logits(batch, None)


def run(script: str, *words: object) -> str:
    return subprocess.run([sys.executable, str(BENCH / script), *map(str, words)], check=True, timeout=200,
                          stdout=subprocess.PIPE, text=True).stdout
