"""Adapters against PEFT: what we write it loads, what it writes we load, with the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.checkpoint.adapters.merge import rows_of
from brise.checkpoint.adapters.peft import AdapterFile, hf_rows, read_adapter, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import write_mix
from brise.errors import CheckpointError, OutputError, UnsupportedError
from brise.models.config import Config
from brise.models.lora import adapted, module_of, targets
from brise.models.weights import LowRank
from tests.checkpoint import peft_models as tiny
from tests.checkpoint.make_adapter import MODULES, random_low_ranks
from tests.checkpoint.make_tokenizer import write_tokenizer
from tests.goldens import golden

# float32 in torch against float64 here, over 2 layers of sums of 80 products: logits are up to 10.
CLOSE = 2e-4
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 7, "^model.layers.0.self_attn.v_proj": 3},
                 "alpha_pattern": {"k_proj": 30, "model.layers.1.self_attn.o_proj": 5}},
    "some": {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [1]},
    "regex": {"target_modules": r".*layers\.[01]\.self_attn\.(q|v)_proj"},
    "ends": {"target_modules": ["v_proj", "embed_tokens", "lm_head"], "rank_pattern": {"embed_tokens": 2}},
    "head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "saved_head": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
    "all_linear": {"target_modules": "all-linear", "lora_alpha": 3},
}


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp(request.param) / "base", request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_base(tmp_path_factory.mktemp("one") / "base", "llama")


@pytest.mark.parametrize("kind", OPTIONS)
def test_an_adapter_of_peft_gives_the_same_logits_here(base: Path, tmp_path: Path, kind: str) -> None:
    expected = tiny.make_adapter(base, tmp_path / "adapter", **OPTIONS[kind])
    checkpoint = open_checkpoint(base)
    adapter = read_adapter(tmp_path / "adapter", checkpoint.config, rows_of(checkpoint.weights()))
    assert adapter.use_dora == (kind in ("dora", "head"))
    assert np.abs(expected - tiny.our_logits(base)).max() > 0.1, "the adapter does something"
    assert np.abs(tiny.our_logits(base, adapter.low_ranks) - expected).max() < CLOSE


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("modules", [MODULES, ("q_proj", "down_proj"), ("q_proj", "lm_head")],
                         ids=["all", "two", "head"])
def test_an_adapter_of_ours_gives_the_same_logits_in_peft(base: Path, tmp_path: Path, modules: tuple[str, ...],
                                                          dora: bool) -> None:
    config = open_checkpoint(base).config
    low_ranks = random_low_ranks(config, 3, dora=dora, modules=modules)
    low_ranks.pop("layers.1.attention.wq")  # no layer need be like another
    low_ranks["layers.0.attention.wq"] = low_rank(config, "layers.0.attention.wq", 5, 1.25, dora=dora)
    write_adapter(tmp_path / "adapter", AdapterFile(low_ranks, 3, 6.0), None, config)
    assert np.abs(tiny.peft_logits(base, tmp_path / "adapter") - tiny.our_logits(base, low_ranks)).max() < CLOSE


def test_an_adapter_of_ours_on_the_embedding_gives_the_same_logits_in_peft(base: Path, tmp_path: Path) -> None:
    config = open_checkpoint(base).config
    low_ranks = random_low_ranks(config, 3, modules=("k_proj", "embed_tokens", "lm_head"))
    write_adapter(tmp_path / "adapter", AdapterFile(low_ranks, 3, 6.0), None, config)
    assert np.abs(tiny.peft_logits(base, tmp_path / "adapter") - tiny.our_logits(base, low_ranks)).max() < CLOSE
    again = read_adapter(tmp_path / "adapter", config).low_ranks
    assert all(np.array_equal(again[path].a, low.a) and np.array_equal(again[path].b, low.b)
               for path, low in low_ranks.items())


def test_a_whole_matrix_needs_the_base(llama: Path, tmp_path: Path) -> None:
    tiny.make_adapter(llama, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.raises(UnsupportedError, match=r"has a whole lm_head \(modules_to_save\), and the base is not read"):
        read_adapter(tmp_path / "adapter", open_checkpoint(llama).config)


def test_magnitudes_on_the_embedding_are_refused(llama: Path, tmp_path: Path) -> None:
    tiny.make_adapter(llama, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"], use_dora=True)
    with pytest.raises(UnsupportedError, match=r"magnitudes \(DoRA\) on the embedding"):
        read_adapter(tmp_path / "adapter", open_checkpoint(llama).config)


def test_a_gguf_of_the_base_takes_the_same_adapter(base: Path, tmp_path: Path) -> None:
    expected = tiny.make_adapter(base, tmp_path / "adapter", use_dora=True)
    if not (base / "tokenizer.json").exists():
        write_tokenizer(base, tiny.SIZES["vocab_size"])
    write_mix(open_original(base), tmp_path / "base.gguf", "F32")
    config = open_checkpoint(tmp_path / "base.gguf").config
    adapter = read_adapter(tmp_path / "adapter", config)
    assert np.abs(tiny.our_logits(tmp_path / "base.gguf", adapter.low_ranks) - expected).max() < CLOSE
    write_adapter(tmp_path / "again", adapter, None, config)
    assert np.abs(tiny.peft_logits(base, tmp_path / "again") - expected).max() < CLOSE


@pytest.fixture(scope="session", params=["phi3", "granitemoehybrid"])
def joined(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose files hold several matrices as one."""
    return tiny.make_base(tmp_path_factory.mktemp(request.param) / "base", request.param)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_an_adapter_of_joined_matrices_is_taken_apart_and_put_together(
        joined: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    expected = tiny.make_adapter(joined, tmp_path / "adapter", target_modules="all-linear", **options)
    config = open_checkpoint(joined).config
    adapter = read_adapter(tmp_path / "adapter", config)
    assert adapter.low_ranks.keys() == targets(config).keys()
    assert np.abs(tiny.our_logits(joined, adapter.low_ranks) - expected).max() < CLOSE
    write_adapter(tmp_path / "again", adapter, None, config)
    assert np.abs(tiny.peft_logits(joined, tmp_path / "again") - expected).max() < CLOSE


@pytest.mark.parametrize("modules", [MODULES, ("q_proj", "down_proj"), ("k_proj", "v_proj", "up_proj")],
                         ids=["all", "two", "three"])
def test_what_is_tuned_in_part_of_a_joined_matrix_is_read_back_bit_for_bit(
        joined: Path, tmp_path: Path, modules: tuple[str, ...]) -> None:
    config = open_checkpoint(joined).config
    low_ranks = random_low_ranks(config, 3, modules=modules)
    write_adapter(tmp_path / "adapter", AdapterFile(low_ranks, 3, 6.0), None, config)
    assert np.abs(tiny.peft_logits(joined, tmp_path / "adapter") - tiny.our_logits(joined, low_ranks)).max() < CLOSE
    read = read_adapter(tmp_path / "adapter", config).low_ranks
    assert list(read) == list(low_ranks)
    for path, own in low_ranks.items():
        assert read[path].scale == own.scale, path
        assert np.array_equal(read[path].a, own.a) and np.array_equal(read[path].b, own.b), path


def test_magnitudes_of_a_part_of_a_joined_matrix_are_refused(tmp_path: Path) -> None:
    config = golden.read("phi3", "half").config
    low_ranks = random_low_ranks(config, 3, modules=("q_proj", "v_proj"), dora=True)
    with pytest.raises(UnsupportedError, match=r"magnitudes \(DoRA\) and none of k_proj"):
        write_adapter(tmp_path / "adapter", AdapterFile(low_ranks, 3, 6.0), None, config)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_what_is_written_is_read_back_bit_for_bit(llama: Path, tmp_path: Path, use_rslora: bool) -> None:
    config = open_checkpoint(llama).config
    low_ranks = random_low_ranks(config, 4, rank=4, dora=True)
    written = AdapterFile(low_ranks, 4, 4.0 if use_rslora else 8.0, use_rslora, 0.05, "some/base")
    write_adapter(tmp_path / "adapter", written, None, config)
    read = read_adapter(tmp_path / "adapter", config)
    assert list(read.low_ranks) == list(low_ranks)
    assert (read.rank, read.alpha, read.use_rslora, read.dropout, read.base_name) == (
        4, written.alpha, use_rslora, 0.05, "some/base")
    for path, own in low_ranks.items():
        found = read.low_ranks[path]
        assert found.scale == own.scale and np.array_equal(found.a, own.a) and np.array_equal(found.b, own.b)
        assert found.magnitude is not None and np.array_equal(found.magnitude, own.magnitude)


def test_bf16_is_rounded_once(llama: Path, tmp_path: Path) -> None:
    config = open_checkpoint(llama).config
    low_ranks = random_low_ranks(config, 5)
    write_adapter(tmp_path / "adapter", AdapterFile(low_ranks, 3, 6.0), None, config, dtype="BF16")
    for path, found in read_adapter(tmp_path / "adapter", config).low_ranks.items():
        assert (np.abs(found.a - low_ranks[path].a) <= 2.0**-8 * np.abs(low_ranks[path].a)).all()
    assert np.isfinite(tiny.peft_logits(llama, tmp_path / "adapter")).all()


@pytest.mark.parametrize("targets_", [r".*language_model.*_proj", list(MODULES)], ids=["decoder", "tower_too"])
def test_a_base_with_a_vision_tower(tmp_path: Path, targets_: object) -> None:
    base = tiny.make_base(tmp_path / "mistral3", "mistral3")
    config = open_checkpoint(base).config
    expected = tiny.make_adapter(base, tmp_path / "adapter", target_modules=targets_)
    if isinstance(targets_, list):
        with pytest.raises(UnsupportedError, match=r"vision_tower.* is not one of an adapter that brise implements"):
            read_adapter(tmp_path / "adapter", config)
        return
    adapter = read_adapter(tmp_path / "adapter", config)
    assert np.abs(tiny.our_logits(base, adapter.low_ranks) - expected).max() < CLOSE
    write_adapter(tmp_path / "again", adapter, None, config, is_wrapped=True)
    assert np.abs(tiny.peft_logits(base, tmp_path / "again") - expected).max() < CLOSE


def test_rows_that_are_not_rotated_stay() -> None:
    config = golden.read("llama_tied", "interleaved").config
    rope = type(config.rope)(config.rope.theta, 4, "interleaved")
    partial = Config(**(vars(config) | {"rope": rope, "head_dim": 6, "num_heads": 2, "num_kv_heads": 1}))
    assert hf_rows("layers.0.attention.wq", partial).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]
    assert hf_rows("layers.0.attention.wk", partial).tolist() == [0, 2, 1, 3, 4, 5]
    assert hf_rows("layers.0.attention.wv", partial) is None


def test_an_existing_folder_is_not_written_over(llama: Path, tmp_path: Path) -> None:
    config = open_checkpoint(llama).config
    (tmp_path / "adapter").mkdir()
    with pytest.raises(OutputError, match="is there already"):
        write_adapter(tmp_path / "adapter", AdapterFile(random_low_ranks(config, 1), 3, 6.0), None, config)


def test_a_failure_while_writing_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    config = open_checkpoint(llama).config
    low_ranks = random_low_ranks(config, 1)
    low_ranks["layers.1.feed_forward.w2"].a[0, 0] = np.nan
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.lora_A\.weight has a number"):
        write_adapter(tmp_path / "adapter", AdapterFile(low_ranks, 3, 6.0), None, config)
    assert list(tmp_path.iterdir()) == []


def test_targets_name_modules_of_every_layer() -> None:
    config = golden.read("qwen3", "half").config
    found = targets(config, ("k_proj", "down_proj"))
    assert len(found) == 2 * config.num_layers and {module_of(path) for path in found} == {"k_proj", "down_proj"}
    assert found["layers.1.feed_forward.w2"] == (config.width, config.ffn_width)


@pytest.mark.parametrize(("modules", "message"), [
    (("score",), "'score', allowed are q_proj.*, embed_tokens, lm_head"), (("q_proj",), "latent attention there"),
    (("up_proj",), "experts there")])
def test_modules_that_take_no_adapter_are_refused(modules: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        targets(golden.read("large3_all_experts", "interleaved").config, modules)


def test_adapters_side_by_side_and_what_does_not_fit() -> None:
    model = golden.read("llama_tied", "interleaved")
    first = random_low_ranks(model.config, 1, modules=("q_proj",))
    second = random_low_ranks(model.config, 2, modules=("q_proj", "v_proj"))
    layer = adapted(model.weights, first, second).layers[0].attention
    assert layer.wq.adapters == (first["layers.0.attention.wq"], second["layers.0.attention.wq"])
    assert layer.wv.adapters == (None, second["layers.0.attention.wv"])
    with pytest.raises(UnsupportedError, match=r"layers\.0\.attention\.wv has the shape"):
        adapted(model.weights, {"layers.0.attention.wv": LowRank(np.zeros((2, 3)), np.zeros((3, 2)), 1.0)})
    with pytest.raises(UnsupportedError, match=r"layers\.77\.attention\.wv, which this model"):
        adapted(model.weights, {"layers.77.attention.wv": second["layers.0.attention.wv"]})


def low_rank(config: Config, path: str, rank: int, scale: float, *, dora: bool) -> LowRank:
    rows, cols = targets(config)[path]
    random = np.random.default_rng(rank)
    magnitude = random.uniform(0.5, 1.5, rows).astype(np.float32) if dora else None
    return LowRank(random.normal(0, 0.2, (rank, cols)).astype(np.float32),
                   random.normal(0, 0.2, (rows, rank)).astype(np.float32), scale, magnitude)
