"""An adapter merged into its base: the same logits, in every file format, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.checkpoint.adapters.lineage import FILE, read_lineage
from brise.checkpoint.adapters.merge import merge, merged, rows_of
from brise.checkpoint.adapters.peft import AdapterFile, read_adapter, write_adapter
from brise.checkpoint.gguf.file import open_gguf
from brise.checkpoint.gguf.write_adapter import write_gguf_adapter
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import Named, open_original
from brise.checkpoint.write_gguf import outgoing, write_mix
from brise.checkpoint.write_hf import write_hf
from brise.cli.main import main
from brise.errors import CheckpointError, UnsupportedError
from brise.models.weights import Array, Dense, LowRank, Quant, Weight, Weights, place
from brise.quant.rows import float_rows, quantize
from tests.checkpoint import peft_models as tiny
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.make_tokenizer import write_tokenizer

# Logits are up to 10. Merged rows are rounded to float32 (2^-24 of up to 1 each), sums have up to 80 of them, 2 layers.
CLOSE = 2e-4


@pytest.fixture(params=tiny.FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tokenizer(tiny.make_base(tmp_path / "base", request.param), tiny.SIZES["vocab_size"])


@pytest.mark.parametrize("dora", [False, True])
def test_merged_files_have_the_logits_of_the_adapter(base: Path, tmp_path: Path, dora: bool) -> None:
    expected = tiny.make_adapter(base, tmp_path / "adapter", use_dora=dora)
    original = open_original(base)
    model = merge(original, read_adapter(tmp_path / "adapter", original.config).low_ranks)
    write_mix(model, tmp_path / "out.gguf", "F32")
    write_hf(model, tmp_path / "out", "F32")
    for path in (tmp_path / "out.gguf", tmp_path / "out"):
        assert np.abs(tiny.our_logits(path) - expected).max() < CLOSE, path
    assert np.abs(tiny.torch_logits(tiny.load(tmp_path / "out")) - expected).max() < CLOSE


@pytest.mark.parametrize("options", [
    {"target_modules": ["q_proj", "lm_head"]}, {"target_modules": ["embed_tokens"]},
    {"target_modules": ["v_proj", "embed_tokens", "lm_head"]},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}], ids=["head", "embedding", "both", "saved"])
def test_a_tied_model_with_an_adapter_on_its_ends_has_an_output_of_its_own(base: Path, tmp_path: Path,
                                                                           options: dict[str, Any]) -> None:
    expected = tiny.make_adapter(base, tmp_path / "adapter", **options)
    write_mix(open_original(base), tmp_path / "base.gguf", "F32")
    for number, source in enumerate((base, tmp_path / "base.gguf")):
        original = open_original(source)
        adapter = read_adapter(tmp_path / "adapter", original.config, rows_of(original.weights))
        model = merge(original, adapter.low_ranks)
        write_mix(model, tmp_path / f"{number}.gguf", "F32")
        write_hf(model, tmp_path / f"{number}", "F32")
        for path in (tmp_path / f"{number}.gguf", tmp_path / f"{number}"):
            assert np.abs(tiny.our_logits(path) - expected).max() < CLOSE, path
            assert not open_original(path).is_tied
        assert np.abs(tiny.torch_logits(tiny.load(tmp_path / f"{number}")) - expected).max() < CLOSE


def test_an_adapter_on_the_ends_as_gguf(tmp_path: Path) -> None:
    for is_tied in (False, True):
        original = open_original(write_tiny(tmp_path / f"{is_tied}.gguf", "llama", tied=is_tied))
        low_ranks = random_low_ranks(original.config, 1, modules=("embed_tokens", "lm_head"))
        adapter, out = AdapterFile(low_ranks, 3, 6.0), tmp_path / f"{is_tied}-lora.gguf"
        if is_tied:
            with pytest.raises(UnsupportedError, match="embed_tokens and lm_head, and the model's output is its emb"):
                write_gguf_adapter(out, adapter, None, original.config, "F32", is_tied=True)
            continue
        write_gguf_adapter(out, adapter, None, original.config, "F32", is_tied=False)
        with open_gguf(out) as file:
            assert np.array_equal(file.array("token_embd.weight.lora_a"), low_ranks["tok_embeddings"].b)
            assert np.array_equal(file.array("token_embd.weight.lora_b"), low_ranks["tok_embeddings"].a.T)
            assert np.array_equal(file.array("output.weight.lora_a"), low_ranks["output"].a)
            assert np.array_equal(file.array("output.weight.lora_b"), low_ranks["output"].b)


def test_a_gguf_base_can_be_merged_too(base: Path, tmp_path: Path) -> None:
    expected = tiny.make_adapter(base, tmp_path / "adapter")
    write_mix(open_original(base), tmp_path / "base.gguf", "F32")
    original = open_original(tmp_path / "base.gguf")
    model = merge(original, read_adapter(tmp_path / "adapter", original.config).low_ranks)
    write_mix(model, tmp_path / "out.gguf", "F32")
    write_hf(model, tmp_path / "out", "F32")
    for path in (tmp_path / "out.gguf", tmp_path / "out"):
        assert np.abs(tiny.our_logits(path) - expected).max() < CLOSE, path


@pytest.mark.parametrize("family", ["phi3", "granitemoehybrid"])
def test_an_adapter_is_merged_into_joined_matrices(tmp_path: Path, family: str) -> None:
    base = write_tokenizer(tiny.make_base(tmp_path / family, family), tiny.SIZES["vocab_size"])
    expected = tiny.make_adapter(base, tmp_path / "adapter", target_modules="all-linear")
    write_mix(open_original(base), tmp_path / "in.gguf", "F32")
    for source in (base, tmp_path / "in.gguf"):
        original = open_original(source)
        model = merge(original, read_adapter(tmp_path / "adapter", original.config).low_ranks)
        write_mix(model, tmp_path / f"{source.stem}-out.gguf", "F32")
        write_hf(model, tmp_path / f"out-{source.name}", "F32")
        for path in (tmp_path / f"{source.stem}-out.gguf", tmp_path / f"out-{source.name}"):
            assert np.abs(tiny.our_logits(path) - expected).max() < CLOSE, path
        assert np.abs(tiny.torch_logits(tiny.load(tmp_path / f"out-{source.name}")) - expected).max() < CLOSE


def test_only_named_matrices_change(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "base.gguf", "llama", tied=True)
    original = open_original(source)
    low_ranks = random_low_ranks(original.config, 1, modules=("v_proj",))
    write_mix(merge(original, low_ranks), tmp_path / "out.gguf", "F32")
    before, after = numbers_of(original.weights), numbers_of(open_checkpoint(tmp_path / "out.gguf").weights())
    assert before.keys() == after.keys() and "output" not in after
    assert {path for path in before if not np.array_equal(before[path], after[path])} == low_ranks.keys()


@pytest.mark.parametrize("format", ["F32", "BF16", "F16", "Q8_0"])
def test_blocks_of_rows_are_the_whole_product_rounded_once(format: str) -> None:
    random = np.random.default_rng(0)
    base, low_rank = random.normal(size=(64, 96)).astype(np.float32), random_low_rank(64, 96)
    whole = base.astype(np.float64) + low_rank.scale * low_rank.b.astype(np.float64) @ low_rank.a
    assert low_rank.magnitude is not None
    whole *= (low_rank.magnitude / np.linalg.norm(whole, axis=1))[:, None]
    weight = merged("w", Dense("F32", base.shape, base), low_rank)
    halves = np.concatenate([float_rows(weight, 0, 20), float_rows(weight, 20, 64)])
    assert np.abs(halves - whole).max() < 16 * 2.0**-24 * np.abs(whole).max()
    written = np.concatenate(list(outgoing(Named("w", weight), format, lambda: None).pieces()))
    unit = {"F32": 2.0**-20, "BF16": 2.0**-8, "F16": 2.0**-10, "Q8_0": 2.0**-7}[format]
    back = float_rows(Quant(format, base.shape, written) if format == "Q8_0" else Dense(
        format, base.shape, written.view({"F32": np.float32, "BF16": np.uint16, "F16": np.float16}[format])), 0, 64)
    assert (np.abs(back - whole) <= unit * np.abs(whole).max(axis=1, keepdims=True)).all()


def test_a_quantised_base_is_decoded_row_by_row() -> None:
    random = np.random.default_rng(0)
    blocks = quantize("Q4_0", random.normal(size=(8, 64)).astype(np.float32), None, 1)
    base, low_rank = Quant("Q4_0", (8, 64), blocks), random_low_rank(8, 64, magnitude=False)
    expected = float_rows(base, 0, 8) + low_rank.scale * low_rank.b @ low_rank.a
    assert np.allclose(float_rows(merged("w", base, low_rank), 2, 5), expected[2:5], rtol=0, atol=1e-6)


def test_a_row_of_zeros_has_no_direction() -> None:
    low_rank = LowRank(np.zeros((1, 32), np.float32), np.zeros((4, 1), np.float32), 1.0, np.ones(4, np.float32))
    weight = merged("w", Dense("F32", (4, 32), np.zeros((4, 32), np.float32)), low_rank)
    with pytest.raises(CheckpointError, match="w has a row of zeros"):
        list(outgoing(Named("w", weight), "F32", lambda: None).pieces())


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    original = open_original(write_tiny(tmp_path / "base.gguf", "llama"))
    with pytest.raises(UnsupportedError, match=r"layers\.0\.attention\.wq has the shape"):
        merge(original, {"layers.0.attention.wq": random_low_rank(8, 8)})
    with pytest.raises(UnsupportedError, match="does not have"):
        merge(original, {"layers.9.attention.wq": random_low_rank(8, 8)})


@pytest.mark.parametrize("words", [["export", "--merge"], ["export", "--merge", "--format", "gguf"],
                                   ["quantize", "--to", "Q8_0"]], ids=["hf", "gguf", "quantize"])
def test_commands_write_a_merged_model_with_its_lineage(tmp_path: Path, words: list[str]) -> None:
    source, adapter = files(tmp_path)
    out = tmp_path / ("out" if words == ["export", "--merge"] else "out.gguf")
    command = [words[0], str(source), str(out), *words[1:], "--adapter", str(adapter)]
    assert main(command) == 1, "the lineage names another base"
    assert main([*command, "--any-base"]) == 0
    model = merge(open_original(source), read_adapter(adapter, open_checkpoint(source).config).low_ranks)
    expected, unit = numbers_of(model.weights), 2.0**-7 if words[0] == "quantize" else 0
    for path, found in numbers_of(open_checkpoint(out).weights()).items():
        assert (np.abs(found - expected[path]) <= unit * np.abs(expected[path]).max(axis=1, keepdims=True)).all()
    if out.is_dir():
        assert read_lineage(out) == LINEAGE
    else:
        text = open_checkpoint(out).metadata["brise.lineage"]
        assert json.loads(str(text)) == json.loads((adapter / FILE).read_text())


def test_an_adapter_alone_as_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, adapter = files(tmp_path)
    words = ["export", str(source), str(tmp_path / "lora.gguf"), "--format", "gguf-lora", "--adapter", str(adapter)]
    assert main([*words, "--any-base", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "F32"
    expected = read_adapter(adapter, open_checkpoint(source).config).low_ranks["layers.1.attention.wq"]
    with open_gguf(tmp_path / "lora.gguf") as file:
        keys = ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")
        assert [file.metadata[key] for key in keys] == ["adapter", "llama", "lora", 6.0]
        assert np.array_equal(file.array("blk.1.attn_q.weight.lora_a"), expected.a)
        assert np.array_equal(file.array("blk.1.attn_q.weight.lora_b"), expected.b)


def test_magnitudes_do_not_go_into_a_gguf_adapter(tmp_path: Path) -> None:
    config = open_checkpoint(write_tiny(tmp_path / "base.gguf", "llama")).config
    adapter = AdapterFile(random_low_ranks(config, 1, dora=True), 3, 6.0)
    with pytest.raises(UnsupportedError, match="has magnitudes"):
        write_gguf_adapter(tmp_path / "lora.gguf", adapter, None, config, "F32", is_tied=True)


@pytest.mark.parametrize(("words", "message"), [
    (["--merge"], "--merge needs --adapter"), (["--adapter", "adapter"], "without a way to export it"),
    (["--adapter", "adapter", "--merge", "--format", "gguf-lora"], "both --merge and"),
    (["--format", "gguf-lora"], "--format gguf-lora needs --adapter"),
    (["--any-base"], "--any-base needs --adapter"), (["--merge", "--adapter", "nothing"], "is no adapter")])
def test_export_refuses_half_an_order(tmp_path: Path, words: list[str], message: str,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny(tmp_path / "base.gguf", "llama")
    assert main(["export", str(source), str(tmp_path / "out.gguf"), *words]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out.gguf").exists()


def test_quantize_refuses_blocks_that_an_adapter_would_hide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, adapter = files(tmp_path, "Q8_0")
    command = ["quantize", str(source), str(tmp_path / "out.gguf"), "--to", "Q4_0", "--adapter", str(adapter)]
    assert main([*command, "--any-base"]) == 1
    assert "is quantised already" in capsys.readouterr().err
    assert main([*command, "--any-base", "--requantize"]) == 0


def files(folder: Path, format: str = "F32") -> tuple[Path, Path]:
    """A base, and an adapter whose lineage is of another."""
    source = write_tiny(folder / "base.gguf", "llama", format=format)
    config = open_checkpoint(source).config
    adapter = AdapterFile(random_low_ranks(config, 2), 3, 6.0)
    write_adapter(folder / "adapter", adapter, LINEAGE, config)
    return source, folder / "adapter"


def random_low_rank(rows: int, cols: int, *, magnitude: bool = True) -> LowRank:
    random = np.random.default_rng(rows)
    return LowRank(random.normal(size=(3, cols)).astype(np.float32), random.normal(size=(rows, 3)).astype(np.float32),
                   0.5, random.uniform(1, 2, rows).astype(np.float32) if magnitude else None)


def numbers_of(weights: Weights) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def note(name: str, weight: Weight) -> Weight:
        found[name] = float_rows(weight, 0, weight.shape[0] if len(weight.shape) > 1 else 1)
        return weight

    place(weights, note)
    return found
