"""How an embedding model makes one vector of many, from a GGUF key and from the files of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.checkpoint.matryoshka import Matryoshka, folder_matryoshka
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.pooling import folder_pooling, gguf_pooling
from brise.checkpoint.read_original import open_original
from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.hub.pull import Puller, pull
from brise.hub.store import ModelStore
from tests.checkpoint import make_folder
from tests.checkpoint.make_tokenizer import write_tokenizer

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
FLAGS = {"word_embedding_dimension": 48, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False,
         "pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False,
         "pooling_mode_weightedmean_tokens": False, "pooling_mode_lasttoken": False, "include_prompt": True}


def write(folder: Path, config: object, modules: object = (TRANSFORMER, POOLING, NORMALIZE)) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.mark.parametrize(("config", "pooling"), [
    (FLAGS | {"pooling_mode_lasttoken": True}, "last"), (FLAGS | {"pooling_mode_mean_tokens": True}, "mean"),
    (FLAGS | {"pooling_mode_cls_token": True}, "cls"), ({"pooling_mode": "lasttoken"}, "last"),
    ({"pooling_mode": "mean", "embedding_dimension": 48}, "mean")])
def test_a_folder_says_its_pooling(tmp_path: Path, config: object, pooling: str) -> None:
    assert folder_pooling(write(tmp_path, config)) == pooling


def test_the_list_of_steps_may_be_missing_or_have_no_pooling(tmp_path: Path) -> None:
    assert folder_pooling(tmp_path) is None
    assert folder_pooling(write(tmp_path, {"pooling_mode": "cls"}, None)) == "cls"
    (tmp_path / "modules.json").write_text(json.dumps([TRANSFORMER]))
    assert folder_pooling(tmp_path) is None


@pytest.mark.parametrize(("config", "modules", "message"), [
    (FLAGS | {"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, [POOLING], "max_tokens"),
    (FLAGS | {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, [POOLING], "2 poolings"),
    (FLAGS, [POOLING], "0 poolings"), ({"pooling_mode": "max"}, [POOLING], "pooling_mode is 'max'"),
    ({"pooling_mode": "cls", "include_prompt": False}, [POOLING], "include_prompt is False"),
    ({"pooling_mode": "cls"}, [POOLING, {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}],
    "models.Dense"),
    ({"pooling_mode": "cls"}, [{**POOLING, "path": "../1_Pooling"}], "names the folder"),
    ({"pooling_mode": "cls"}, {"a": 1}, "holds no list"), ({"pooling_mode": "cls"}, [5], "without type and path")])
def test_what_brise_does_not_do_is_refused_by_name(tmp_path: Path, config: object, modules: object,
                                                   message: str) -> None:
    with pytest.raises(BriseError, match=message):
        folder_pooling(write(tmp_path, config, modules))


@pytest.mark.parametrize(("config", "sentences", "shorter"), [
    ({}, None, None), ({"matryoshka_dimensions": [32, 16]}, {}, Matryoshka((16, 32))),
    ({"is_matryoshka": True}, None, Matryoshka()), ({}, {"truncate_dim": 16, "matryoshka_dims": [8]},
                                                    Matryoshka((8,), 16)), ({"is_matryoshka": False}, None, None)])
def test_a_folder_says_which_shorter_vectors_there_are(tmp_path: Path, config: object, sentences: object,
                                                       shorter: object) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    if sentences is not None:
        (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(sentences))
    assert folder_matryoshka(tmp_path, 48) == shorter


@pytest.mark.parametrize(("config", "message"), [
    ({"matryoshka_dims": [64]}, "matryoshka_dims is 64, allowed is whole numbers of 1 to 48"),
    ({"matryoshka_dimensions": 5}, "matryoshka_dimensions is 5, allowed is a list"),
    ({"truncate_dim": 0}, "truncate_dim is 0")])
def test_lengths_that_no_vector_has_are_refused(tmp_path: Path, config: object, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        folder_matryoshka(tmp_path, 48)


def test_the_numbers_of_gguf() -> None:
    kinds = [gguf_pooling({"general.architecture": "qwen3", "qwen3.pooling_type": number}) for number in (0, 1, 2, 3.0)]
    assert kinds == [None, "mean", "cls", "last"] and gguf_pooling({}) is None
    with pytest.raises(UnsupportedError, match="pooling_type is 4"):
        gguf_pooling({"general.architecture": "qwen3", "qwen3.pooling_type": 4})


def test_an_embedding_folder_keeps_its_pooling_in_the_store_and_in_gguf(tmp_path: Path) -> None:
    folder = make_folder.write_hf(tmp_path / "embed", make_folder.tiny("qwen3"))
    write_tokenizer(folder, 97)
    write(folder, FLAGS | {"pooling_mode_lasttoken": True})
    store = ModelStore(tmp_path / "home")
    entry = pull(Puller(store, lambda *a: None, lambda path: open_checkpoint(path).close(), lambda: None), str(folder))
    assert {"modules.json", "1_Pooling.config.json"} <= {file.name for file in entry.files}
    assert open_checkpoint(store.path(entry)).pooling == open_checkpoint(folder).pooling == "last"
    metadata = open_original(store.path(entry)).metadata
    assert metadata["qwen3.pooling_type"] == 3 and gguf_pooling(metadata) == "last"


def test_a_folder_name_that_no_disk_has_is_named(tmp_path: Path) -> None:
    write(tmp_path, FLAGS, [TRANSFORMER, POOLING | {"path": "a" * 256}])
    with pytest.raises(CheckpointError, match="names the folder 'aaaa"):
        folder_pooling(tmp_path)
