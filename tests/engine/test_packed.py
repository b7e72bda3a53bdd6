"""Packed weights of a model: a second load maps them and gives the same numbers; what is not whole is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.model import LoadedModel, load
from brise.hub.packed import PackedFolder
from brise.models.batch import Batch
from brise.models.weights import Array
from tests.checkpoint import make_folder as make
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_tokenizer import write_tokenizer
from tests.checkpoint.make_vision_model import write_seeing

pytest.importorskip("brise._native")


@pytest.fixture
def folder(tmp_path: Path) -> PackedFolder:
    return PackedFolder(tmp_path / "packed", least_bytes=0)


def gguf(tmp_path: Path, seed: int = 0) -> Path:
    tmp_path.mkdir(exist_ok=True)
    return write_tiny(tmp_path / "tiny.gguf", "qwen3", format="Q8_0", seed=seed)


def hf(tmp_path: Path) -> Path:
    return write_tokenizer(make.write_hf(tmp_path / "model", make.tiny("ministral3_yarn0_untied"), "old"), 97)


def mixtral(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf", "mixtral", format="Q8_0", tied=False)


def kept(model: LoadedModel) -> LoadedModel:
    """The model, after its packed weights were written."""
    assert model.keeper is not None and model.keeper.finish() and model.keeper.reason == ""
    return model


def logits(model: LoadedModel) -> Array:
    tokens = np.arange(20, 40, dtype=np.int32)
    batch = Batch(tokens, np.arange(20, dtype=np.int32), np.array([0, 20], np.int32), np.arange(20, dtype=np.int32))
    return np.array(model.backend.runner(model.config, model.weights, 32).logits(batch, None))


@pytest.mark.parametrize(("write", "mix"), [(gguf, None), (hf, None), (hf, "Q8_0"), (mixtral, None)],
                         ids=["gguf", "folder", "quantized", "experts"])
def test_the_second_load_gives_the_same_numbers(tmp_path: Path, folder: PackedFolder, write: object,
                                                mix: str | None) -> None:
    assert callable(write)
    path = write(tmp_path)
    first = logits(kept(load(path, weights=mix, packed=folder)))
    second = load(path, weights=mix, packed=folder)
    assert second.keeper is None and np.array_equal(logits(second), first)
    assert np.array_equal(logits(load(path, weights=mix)), first)


def test_an_encoder_of_images_is_kept_too(tmp_path: Path, folder: PackedFolder) -> None:
    (tmp_path / "seeing").mkdir()
    path = write_seeing(tmp_path / "seeing")
    image = np.random.default_rng(0).normal(size=(3, 56, 56)).astype(np.float32)
    features = []
    for model in (kept(load(path, packed=folder)), load(path, packed=folder), load(path)):
        assert model.vision is not None
        features.append(model.vision.encode([image])[0])
    assert np.array_equal(features[0], features[1]) and np.array_equal(features[0], features[2])


def test_a_change_of_any_byte_is_seen_and_mended(tmp_path: Path, folder: PackedFolder) -> None:
    path = gguf(tmp_path)
    expected = logits(kept(load(path, packed=folder)))
    (file,) = folder.files()
    whole = file.path.read_bytes()
    file.path.chmod(0o600)
    begins = next(at for at in range(4096, len(whole), 4096) if any(whole[at:at + 4096]))
    tiles = [at for at in range(begins, len(whole), 1021) if whole[at]]
    for place in (0, 20, 100, tiles[0], tiles[len(tiles) // 2], tiles[-1]):
        changed = bytearray(whole)
        changed[place] ^= 0x80
        file.path.write_bytes(changed)
        model = load(path, packed=folder)
        assert model.keeper is not None and np.array_equal(logits(model), expected), place
    kept(load(path, packed=folder))
    assert file.path.read_bytes() == whole


@pytest.mark.parametrize("size", [0, 10, 5000, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_not_used(tmp_path: Path, folder: PackedFolder, size: float) -> None:
    path = gguf(tmp_path)
    expected = logits(kept(load(path, packed=folder)))
    (file,) = folder.files()
    file.path.chmod(0o600)
    os.truncate(file.path, int(size if size >= 1 else size * file.nbytes))
    model = load(path, packed=folder)
    assert model.keeper is not None and np.array_equal(logits(model), expected)


def test_another_model_under_the_same_name_is_packed_anew(tmp_path: Path, folder: PackedFolder) -> None:
    path = gguf(tmp_path)
    before = logits(kept(load(path, packed=folder)))
    times = path.stat()
    other = gguf(tmp_path / "other", seed=1)
    assert other.stat().st_size == times.st_size
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))  # as tools do that keep times
    other.rename(path)
    model = load(path, packed=folder)
    assert model.keeper is not None and not np.array_equal(logits(model), before)
    assert np.array_equal(logits(model), logits(load(path)))


def test_a_config_that_changes_is_another_model(tmp_path: Path, folder: PackedFolder) -> None:
    path = hf(tmp_path)
    kept(load(path, packed=folder))
    config = path / "config.json"
    config.write_text(config.read_text() + "\n")
    assert load(path, packed=folder).keeper is not None


def test_experts_on_demand_and_small_models_are_not_kept(tmp_path: Path, folder: PackedFolder) -> None:
    path = mixtral(tmp_path)
    assert load(path, packed=folder, expert_bytes=10 << 20).keeper is None
    assert load(path, packed=replace(folder, least_bytes=1 << 30)).keeper is None
    assert load(path, backend="reference", packed=folder).keeper is None


def test_a_server_keeps_them_while_it_runs(tmp_path: Path, folder: PackedFolder) -> None:
    worker = EngineThread(Engine(load(gguf(tmp_path), packed=folder), EngineSettings(num_pages=4)))
    worker.start()
    keeper = worker.model.keeper
    assert keeper is not None and keeper.finish()
    worker.shutdown()
    assert len(folder.files()) == 1


def test_a_file_that_is_deleted_stays_mapped(tmp_path: Path, folder: PackedFolder) -> None:
    path = gguf(tmp_path)
    expected = logits(kept(load(path, packed=folder)))
    model = load(path, packed=folder)
    assert len(folder.prune(everything=True)[0]) == 1
    assert np.array_equal(logits(model), expected)


RACER = """
import sys
from pathlib import Path
from brise.engine.model import load
from brise.hub.packed import PackedFolder
from tests.engine.test_packed import logits
model = load(sys.argv[1], threads=1, packed=PackedFolder(Path(sys.argv[2]), least_bytes=0))
if model.keeper is not None:
    model.keeper.finish()
sys.stdout.buffer.write(logits(model).tobytes())
"""


def test_processes_that_race_agree(tmp_path: Path, folder: PackedFolder) -> None:
    path = gguf(tmp_path)
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(path), str(folder.folder)], stdout=subprocess.PIPE)
              for _ in range(3)]
    answers = {racer.communicate(timeout=120)[0] for racer in racers}
    assert answers == {logits(load(path)).tobytes()}
    assert len(folder.files()) == 1 and load(path, packed=folder).keeper is None
