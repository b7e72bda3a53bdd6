"""Adapter folders that lie, are cut short, or ask for what brise does not do: refused by name, in little memory."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.checkpoint.adapters.lineage import FILE, read_lineage
from brise.checkpoint.adapters.peft import read_adapter
from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.files.json_file import MAX_JSON_BYTES
from tests.checkpoint import make_folder as make
from tests.checkpoint.make_adapter import LINEAGE, edit, written
from tests.checkpoint.test_safetensors_fuzz import CHANGES, VALUES
from tests.goldens import golden
from tests.profiles import examples


def small_files() -> dict[str, bytes]:
    """An adapter's files and their bytes."""
    with tempfile.TemporaryDirectory() as folder:
        written(Path(folder) / "adapter", MODEL.config)
        return {path.name: path.read_bytes() for path in (Path(folder) / "adapter").iterdir()}


MODEL = golden.read("llama_tied", "interleaved")
SMALL = small_files()
MEMORY_LIMIT = MAX_JSON_BYTES + (1 << 20)  # reading JSON takes a buffer of the first; the adapter has 50 KB
KEYS = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "target_modules", "rank_pattern",
        "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules", "bias", "modules_to_save",
        "base_model_name_or_path", "init_lora_weights", "other")
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return written(tmp_path / "adapter", MODEL.config)


@pytest.mark.parametrize(("values", "message"), [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA', which brise does not implement; allowed is 'LORA'"),
    ({"peft_type": None}, "peft_type is missing"),
    ({"bias": "all"}, "bias is 'all', which brise does not implement; allowed is 'none'"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is True"), ({"lora_bias": True}, "lora_bias is True"),
    ({"modules_to_save": ["lm_head"]}, "names lm_head in modules_to_save, and there is no whole output"),
    ({"modules_to_save": ["score"]}, "modules_to_save is ['score'], which brise does not implement; allowed is null"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices is [1]"),
    ({"layer_replication": [[0, 1]]}, "layer_replication is [[0, 1]]"),
    ({"target_parameters": ["experts"]}, "target_parameters is ['experts']"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"), ({"use_qalora": True}, "use_qalora is True"),
    ({"arrow_config": {"top_k": 2}}, "arrow_config is"), ({"something_new": 1}, "something_new is 1"),
    ({"r": 0}, "r is 0"), ({"r": 1 << 20}, "r is 1048576, allowed is 1 to 1024"), ({"r": "8"}, "r is '8'"),
    ({"lora_alpha": -1}, "lora_alpha is -1"), ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
    ({"lora_dropout": 2}, "lora_dropout is 2"),
    ({"rank_pattern": {"(a+)+b": 2}}, "rank_pattern has the key '(a+)+b'"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.q_proj is 0"),
    ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern.q_proj is 'x'"), ({"alpha_pattern": [1]}, "alpha_pattern is"),
    ({"layers_to_transform": "all"}, "layers_to_transform is"), ({"layers_pattern": "h"}, "layers_pattern is 'h'"),
    ({"layers_to_transform": [1]}, "layers.0.self_attn.q_proj, which adapter_config.json does not name"),
    ({"target_modules": []}, "target_modules is []"),
    ({"target_modules": ["k_proj"]}, "tensors of model.layers.0.self_attn.q_proj, which"),
    ({"target_modules": ["q_proj", "v_proj"]}, "names model.layers.0.self_attn.v_proj, of which there are no tensors"),
    ({"r": 4}, f"shape of {Q_PROJ}.lora_A.weight is (3, 48), allowed is (4, 48)"),
    ({"use_dora": True}, "self_attn.q_proj.lora_magnitude_vector is 'missing'")])
def test_a_setting_is_honoured_or_refused_by_name(adapter: Path, values: dict[str, Any], message: str) -> None:
    edit(adapter, **values)
    with pytest.raises((CheckpointError, UnsupportedError)) as caught:
        read_adapter(adapter, MODEL.config)
    assert message in str(caught.value)
    assert str(caught.value).startswith(("adapter_config.json: ", "adapter_model.safetensors: "))


@pytest.mark.parametrize(("name", "message"), [
    ("base_model.model.lm_head.lora_A.weight", "tensors of lm_head, which adapter_config.json does not name"),
    ("base_model.model.model.embed_tokens.lora_embedding_A", "of model.embed_tokens, which adapter_config.json"),
    ("base_model.model.lm_head.weight", "tensors of lm_head, which adapter_config.json does not name"),
    ("base_model.model.lm_head.lora_embedding_A", "is not one of an adapter that brise implements"),
    ("base_model.model.model.embed_tokens.lora_A.weight", "lora_A.weight is not one of"),
    ("base_model.model.lm_head.base_layer.weight", r"lm_head.base_layer.weight is \(3, 48\), allowed is \(97, 48\)"),
    ("base_model.model.model.vision_tower.layers.0.attention.q_proj.lora_A.weight", "is not one of"),
    ("base_model.model.model.layers.0.mlp.experts.0.gate_proj.lora_A.weight", "is not one of"),
    ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", "is not one of"),
    ("base_model.model.model.layers.0.self_attn.q_a_proj.lora_A.weight", "is not one of"),
    ("base_model.model.model.layers.0.self_attn.x_proj.lora_A.weight", "is not one of"),
    ("base_model.model.model.layers.0.input_layernorm.weight", "is not one of"),
    ("base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", "the model has no layers.9.attention.wq"),
    ("base_model.model.layers.0.self_attn.q_proj.lora_A.weight", "one lora_A.weight for layers.0.attention.wq"),
    (f"{Q_PROJ}.lora_magnitude_vector", "allowed is no tensor, as use_dora is false")])
def test_a_tensor_that_is_no_low_rank_of_the_model_is_refused(adapter: Path, name: str, message: str) -> None:
    rewrite(adapter, {**tensors(), name: ("F32", np.ones((3, 48), np.float32))})
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        read_adapter(adapter, MODEL.config)


@pytest.mark.parametrize(("dtype", "numbers", "message"), [
    ("F32", np.ones((48, 3)), r"shape of .*lora_A\.weight is \(48, 3\), allowed is \(3, 48\)"),
    ("F32", np.full((3, 48), np.inf), r"a number of .*lora_A\.weight is inf"),
    ("I64", np.ones((3, 48)), r"lora_A\.weight has the dtype I64, allowed are F32, F16, BF16")])
def test_numbers_are_checked(adapter: Path, dtype: str, numbers: Any, message: str) -> None:
    rewrite(adapter, {**tensors(), f"{Q_PROJ}.lora_A.weight": (dtype, numbers)})
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        read_adapter(adapter, MODEL.config)


def test_half_of_a_pair_is_missed(adapter: Path) -> None:
    rewrite(adapter, {name: value for name, value in tensors().items() if name != f"{Q_PROJ}.lora_B.weight"})
    with pytest.raises(CheckpointError, match=r"q_proj\.lora_B\.weight is 'missing', allowed is a tensor"):
        read_adapter(adapter, MODEL.config)


def test_a_base_of_another_width_is_named(adapter: Path) -> None:
    with pytest.raises(CheckpointError, match=r"shape of .*q_proj.* is .*, by the model and the rank") as caught:
        read_adapter(adapter, golden.read("ministral3_yarn0_tied", "interleaved").config)
    assert caught.value.hint == "it was made for another model"


def test_a_pickle_is_not_opened(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UnsupportedError, match=r"adapter_model\.bin is a pickle, which can run any code"):
        read_adapter(adapter, MODEL.config)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_adapter(adapter, MODEL.config)


@pytest.mark.parametrize("written_first", [False, True])
def test_a_writer_that_is_killed_leaves_nothing_or_all(tmp_path: Path, written_first: bool) -> None:
    """SIGKILL before, or right after, the folder gets its name."""
    out = tmp_path / "adapter"
    source = ("import os, pathlib, signal, sys\n"
              "from tests.checkpoint.make_adapter import written\n"
              "from tests.goldens import golden\n"
              "config = golden.read('llama_tied', 'interleaved').config\n"
              "rename, is_late = os.rename, sys.argv[2] == 'True'\n"
              "def killed(*paths):\n"
              "    if is_late: rename(*paths)\n"
              "    os.kill(os.getpid(), signal.SIGKILL)\n"
              "os.rename = killed\n"
              "written(pathlib.Path(sys.argv[1]), config)\n")
    result = subprocess.run([sys.executable, "-c", source, str(out), str(written_first)], check=False,
                            cwd=Path(__file__).parents[2])
    assert result.returncode == -signal.SIGKILL and out.exists() == written_first
    if not written_first:
        written(out, MODEL.config)
    assert read_adapter(out, MODEL.config).low_ranks and read_lineage(out) == LINEAGE
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@settings(max_examples=examples(300))
@given(CHANGES)
def test_overwritten_bytes_of_the_tensors_header(changes: list[tuple[int, bytes]]) -> None:
    with fresh() as folder:
        path = folder / "adapter_model.safetensors"
        data = bytearray(path.read_bytes())
        length = 8 + int.from_bytes(data[:8], "little")
        for position, new in changes:
            start = position % length
            data[start:start + len(new)] = new
        path.write_bytes(data)
        reads_or_refuses(folder)


@settings(max_examples=examples(400))
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=3))
def test_any_values_of_the_config(values: dict[str, Any]) -> None:
    with fresh() as folder:
        edit(folder, **values)
        reads_or_refuses(folder)


@settings(max_examples=examples(200))
@given(st.sampled_from([FILE, "adapter_config.json"]), CHANGES)
def test_overwritten_bytes_of_the_json_files(name: str, changes: list[tuple[int, bytes]]) -> None:
    with fresh() as folder:
        data = bytearray((folder / name).read_bytes())
        for position, new in changes:
            start = position % len(data)
            data[start:start + len(new)] = new
        (folder / name).write_bytes(data)
        reads_or_refuses(folder)


def reads_or_refuses(folder: Path) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(BriseError):
            read_adapter(folder, MODEL.config)
        with contextlib.suppress(BriseError):
            read_lineage(folder)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_LIMIT


@contextlib.contextmanager
def fresh() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in SMALL.items():
            (Path(folder) / name).write_bytes(data)
        yield Path(folder)


def tensors() -> make.Files:
    """What `written` writes, as make_folder takes it."""
    rows, cols = MODEL.config.num_heads * MODEL.config.head_dim, MODEL.config.width
    return {f"base_model.model.model.layers.{index}.self_attn.q_proj.lora_{side}.weight": ("F32", numbers)
            for index in range(MODEL.config.num_layers)
            for side, numbers in (("A", np.ones((3, cols), np.float32)), ("B", np.ones((rows, 3), np.float32)))}


def rewrite(folder: Path, files: make.Files) -> None:
    path = folder / "adapter_model.safetensors"
    path.unlink()
    make.write_safetensors(path, files)


@pytest.mark.parametrize("value", [False, None, [], {}, "", 0, 0.0])
def test_a_key_of_a_newer_peft_that_asks_for_nothing_is_a_note(adapter: Path, value: object) -> None:
    edit(adapter, some_new_flag=value, trainable_token_indices=value if value != 0 or value is False else None)
    assert read_adapter(adapter, MODEL.config) is not None
