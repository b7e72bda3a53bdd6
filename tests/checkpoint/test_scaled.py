"""FP8 and NVFP4 weights become the numbers that compressed-tensors makes of them, and bad scales are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.safetensors.fp8_nvfp4 import e4m3_numbers, from_bf16, to_bf16
from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.weights import Attention, Mixture, Stack, Stored, Weight, place
from tests.backends.under_test import open_backend
from tests.checkpoint import make_folder as make
from tests.goldens import golden

Array = Any
NAME = "ministral3_yarn0_untied"
FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None,
                               "modules_to_not_convert": ["lm_head"], "dequantize": False}}
NATIVE_FP8 = {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}


@pytest.fixture(scope="module")
def goldens() -> dict[str, Array]:
    with np.load(golden.FOLDER / "scaled.npz") as file:
        return dict(file)


@pytest.mark.parametrize("kind", ["block", "channel", "nvfp4"])
def test_numbers_are_those_of_compressed_tensors(tmp_path: Path, goldens: dict[str, Array], kind: str) -> None:
    expected = goldens[f"{kind}.numbers"]
    weight = first_wq(one_matrix(tmp_path, tensors_of(goldens, kind), expected.shape))
    assert weight.format == "BF16"
    assert np.array_equal(in_halves(weight.rows(0, len(expected))), expected)
    assert np.array_equal(np.concatenate([weight.rows(0, 5), weight.rows(5, 130), weight.rows(130, len(expected))]),
                          weight.rows(0, len(expected)))


def test_model_opt_spells_nvfp4_with_a_factor(tmp_path: Path, goldens: dict[str, Array]) -> None:
    files = tensors_of(goldens, "nvfp4")
    _, whole = files.pop("weight_global_scale")
    files |= {"weight_scale_2": ("F32", (1 / whole).astype(np.float32).reshape(())),
              "weight": files.pop("weight_packed"), "input_scale": ("F32", whole)}
    weight = first_wq(one_matrix(tmp_path, files, goldens["nvfp4.numbers"].shape))
    numbers, expected = (from_bf16(bits) for bits in (in_halves(weight.rows(0, 136)), goldens["nvfp4.numbers"]))
    assert np.abs(numbers - expected).max() <= 2**-8 * np.abs(expected).max()
    assert (numbers == expected).mean() > 0.99  # the reciprocal has a rounding of its own


def test_every_e4m3_code() -> None:
    numbers = e4m3_numbers()
    assert numbers[[0, 1, 7, 8, 0x38, 0x7E]].tolist() == [0, 2**-9, 7 * 2**-9, 2**-6, 1, 448]
    assert np.isnan(numbers[[0x7F, 0xFF]]).all() and np.isfinite(np.delete(numbers, [0x7F, 0xFF])).all()
    assert np.array_equal(numbers[:127], -numbers[128:255])


def test_bf16_rounds_to_even() -> None:
    numbers = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-9], np.float32)
    assert from_bf16(to_bf16(numbers)).tolist() == [1, 1, 1 + 2**-6, 1 + 2**-7, -1]


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_fp8_gives_the_same_logits_in_both_layouts_and_as_bf16(tmp_path: Path, backend: str) -> None:
    hf, native, bf16 = fp8_folders(tmp_path)
    expected = logits_of(bf16, backend)
    assert np.array_equal(logits_of(hf, backend), expected)
    assert np.array_equal(logits_of(native, backend), expected)
    assert np.isfinite(expected).all()


@pytest.mark.parametrize("shape", [(6,), (6, 1, 1)])
def test_experts_in_one_fp8_tensor_have_a_scale_each(tmp_path: Path, shape: tuple[int, ...]) -> None:
    model = make.tiny("large3")
    files = make.hf_tensors(model)
    random, layer = np.random.default_rng(0), "model.layers.2.mlp.experts."
    scales = (2.0 ** -random.integers(3, 9, 6)).astype(np.float32)
    codes = {name: random.integers(0, 127, files[layer + name][1].shape, dtype=np.uint8)
             for name in ("gate_up_proj", "down_proj")}
    for name, stored in codes.items():
        files |= {layer + name: ("F8_E4M3", stored), f"{layer}{name}_scale_inv": ("F32", scales.reshape(shape)),
                  f"{layer}{name}_activation_scale": ("F32", np.ones(6, np.float32))}
    mixture = open_checkpoint(write(tmp_path, model, files)).weights().layers[2].feed_forward
    assert isinstance(mixture, Mixture)
    for index, scale in enumerate(scales):
        both = np.concatenate([numbers_of(mixture.w1, index), numbers_of(mixture.w3, index)])
        assert np.array_equal(both, e4m3_numbers()[codes["gate_up_proj"][index]] * scale)
        assert np.array_equal(numbers_of(mixture.w2, index), e4m3_numbers()[codes["down_proj"][index]] * scale)


def test_large_3_in_fp8_blocks_is_the_same_as_in_bf16(tmp_path: Path) -> None:
    """The real names: scales beside wq_b, wkv_b, wo and every w1, w2 and w3, and one for each 16 x 8 numbers."""
    model = make.tiny("large3")
    block, scaled, plain = (16, 8), make.native_tensors(model, "BF16"), make.native_tensors(model, "BF16")
    for name, (_, numbers) in list(scaled.items()):
        if not name.endswith(("wq_b.weight", "wkv_b.weight", "wo.weight", "w1.weight", "w2.weight", "w3.weight")):
            continue
        grid = -(-numbers.shape[0] // 16), -(-numbers.shape[1] // 8)
        scales = (2.0 ** -np.random.default_rng(0).integers(5, 9, grid)).astype(np.float32)
        spread = np.kron(scales, np.ones(block, np.float32))[:numbers.shape[0], :numbers.shape[1]]
        codes = nearest(numbers / spread)
        scaled |= {name: ("F8_E4M3", codes), f"{name}_scale": ("F32", scales)}
        plain[name] = ("BF16", e4m3_numbers()[codes] * spread)
    quantization = {"quantization_config": {
        "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"FP8_BLOCK": {"weights": {
            "num_bits": 8, "type": "float", "strategy": "block", "block_structure": list(block)}}}}}
    found = []
    for name, files, extra in (("fp8", scaled, quantization), ("bf16", plain, {})):
        make.write_folder(tmp_path / name, "consolidated", files)
        (tmp_path / name / "params.json").write_text(json.dumps(make.params(model) | extra))
        found.append(logits_of(tmp_path / name, "reference"))
    assert np.array_equal(found[0], found[1]) and np.isfinite(found[0]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_scales_that_are_no_scales_are_refused(tmp_path: Path, value: float) -> None:
    model = make.tiny(NAME)
    files = fp8_tensors(make.hf_tensors(model))
    name = "model.layers.1.mlp.up_proj.weight_scale_inv"
    files[name] = ("BF16", np.array(from_bf16(np.array([0], np.uint16))[0] + value, np.float32).reshape(()))
    folder = write(tmp_path, model, files)
    weights = open_checkpoint(folder).weights()
    with pytest.raises(CheckpointError, match="a scale of model.layers.1.mlp.up_proj.weight is"):
        place(weights, open_backend("reference").backend.place)


@pytest.mark.parametrize(("change", "message"), [
    ({"weight_scale_inv": None}, "layers.0.mlp.down_proj.weight_scale_inv is missing"),
    ({"weight_scale_inv": ("F32", np.ones((7, 9), np.float32))}, r"shape of the scales of model.layers.0.mlp.down"),
    ({"weight_scale_inv": ("I64", np.ones((), np.int64))}, "has the dtype I64"),
    ({"weight": ("F8_E4M3", np.zeros((48, 79), np.uint8))}, r"down_proj.weight is \(48, 79\), allowed is \(48, 80\)"),
    ({"weight_packed": ("U8", np.zeros((48, 40), np.uint8))}, "down_proj.weight_scale is missing"),
    ({"other": ("F32", np.zeros(1, np.float32))}, "down_proj.other, which brise does not implement"),
])
def test_what_does_not_fit_is_refused_by_name(
        tmp_path: Path, change: Mapping[str, tuple[str, Array] | None], message: str) -> None:
    model = make.tiny(NAME)
    files: dict[str, Any] = fp8_tensors(make.hf_tensors(model))
    files |= {f"model.layers.0.mlp.down_proj.{part}": value for part, value in change.items()}
    folder = write(tmp_path, model, {name: value for name, value in files.items() if value is not None})
    with pytest.raises(BriseError, match=message):
        open_checkpoint(folder).weights()


@pytest.mark.parametrize(("quantization", "message"), [
    ({"quant_method": "gptq", "bits": 4}, "quant_method is 'gptq'"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}, "'pack-quantized'"),
    ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
        "a": {"weights": {"num_bits": 8, "type": "int"}}}}, "config_groups.a.weights.type is 'int'"),
    ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}, "transform_config": {
        "a": 1}}, "transform_config is"),
    ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo is 'W4A8_AWQ'"),
    ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size"),
    ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'"),
    ({"quant_method": "fp8", "rotation": True}, "rotation is True"),
])
def test_unknown_quantisations_are_refused_by_name(
        tmp_path: Path, quantization: Mapping[str, object], message: str) -> None:
    folder = make.write_hf(tmp_path, make.tiny(NAME), extra={"quantization_config": dict(quantization)})
    with pytest.raises((CheckpointError, UnsupportedError), match=f"config.json: quantization_config.*{message}"):
        open_checkpoint(folder)


def numbers_of(stack: Weight, index: int) -> Array:
    assert isinstance(stack, Stack)
    matrix = stack.matrices[index]
    assert isinstance(matrix, Stored) and matrix.format == "BF16"
    return from_bf16(matrix.rows(0, matrix.shape[0]))


def tensors_of(goldens: Mapping[str, Array], kind: str) -> dict[str, tuple[str, Array]]:
    """A module's tensors as compressed-tensors writes them."""
    dtypes = {"weight": "F8_E4M3", "weight_packed": "U8", "weight_global_scale": "F32",
              "weight_scale": "F8_E4M3" if kind == "nvfp4" else "F32"}
    return {name: (dtype, goldens[f"{kind}.{name}"]) for name, dtype in dtypes.items() if f"{kind}.{name}" in goldens}


def one_matrix(folder: Path, files: Mapping[str, tuple[str, Array]], shape: tuple[int, int]) -> Path:
    """A Ministral 3 of one layer whose wq, of this shape and two heads, is the matrix in question."""
    rows, cols = shape
    config = {**make.tiny(NAME).config, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": rows // 2,
              "width": cols, "ffn_width": 32, "vocab_size": 9}
    config["rope"] = {**config["rope"], "dim": rows // 2}
    sizes = {"tok_embeddings": (9, cols), "norm": (cols,), "layers.0.attention_norm": (cols,), "layers.0.wk": shape,
             "layers.0.wv": shape, "layers.0.wo": (cols, rows), "layers.0.ffn_norm": (cols,),
             "layers.0.w1": (32, cols), "layers.0.w2": (cols, 32), "layers.0.w3": (32, cols)}
    model = make.Tiny(config, {name: np.zeros(size, np.float32) for name, size in sizes.items()})
    named = {f"model.layers.0.self_attn.q_proj.{part}": value for part, value in files.items()}
    return write(folder, model, make.hf_tensors(model) | named)


def write(folder: Path, model: make.Tiny, files: make.Files, extra: Mapping[str, object] = FP8) -> Path:
    make.write_folder(folder, "model", files)
    (folder / "config.json").write_text(json.dumps(make.hf_config(model, is_wrapped=False) | dict(extra)))
    return folder


def first_wq(folder: Path) -> Stored:
    attention = open_checkpoint(folder).weights().layers[0].attention
    assert isinstance(attention, Attention) and isinstance(attention.wq, Stored)
    return attention.wq


def in_halves(rows: Array) -> Array:
    return golden.halves(rows, 2)


def fp8_folders(root: Path) -> tuple[Path, Path, Path]:
    """The same FP8 weights of a golden in both layouts, and dequantised by hand."""
    model = make.tiny(NAME)
    hf = write(root / "hf", model, fp8_tensors(make.hf_tensors(model)))
    native = root / "native"
    files = fp8_tensors(make.native_tensors(model), "qscale_weight", "qscale_act")
    files["layers.0.attention.q_fake_quantizer.qscale_act"] = ("BF16", np.ones((), np.float32))
    make.write_folder(native, "consolidated", files)
    (native / "params.json").write_text(json.dumps(make.params(model) | NATIVE_FP8))
    plain: make.Files = {}
    for name, (dtype, numbers) in fp8_tensors(make.hf_tensors(model)).items():
        if dtype == "F8_E4M3":
            product = e4m3_numbers()[numbers] * SCALE
            plain[name] = ("BF16", from_bf16(to_bf16(product.astype(np.float32))))
        elif not name.endswith("scale") and not name.endswith("scale_inv"):
            plain[name] = (dtype, numbers)
    return hf, native, write(root / "bf16", model, plain, {})


SCALE = np.float32(0.00390625 * 1.2890625)  # exact in BF16, and no power of two


def fp8_tensors(files: make.Files, scale: str = "weight_scale_inv", activation: str = "activation_scale") -> make.Files:
    """Linears of the layers as FP8 with one scale, as Ministral 3 Instruct has them; the rest stays BF16."""
    out: make.Files = {}
    for name, (_, numbers) in files.items():
        if "layers." not in name or numbers.ndim == 1:
            out[name] = ("BF16", numbers)
            continue
        out[name] = ("F8_E4M3", nearest(numbers / SCALE))
        module = name.removesuffix(".weight")
        out[f"{module}.{scale}"] = ("BF16", np.array(SCALE))
        out[f"{module}.{activation}"] = ("BF16", np.array(0.5, np.float32))
    return out


def nearest(numbers: Array) -> Array:
    table = e4m3_numbers()
    table[np.isnan(table)] = np.inf
    return np.abs(numbers[..., None] - table).argmin(axis=-1).astype(np.uint8)


def logits_of(folder: Path, backend: str) -> Array:
    if backend == "native":
        native = pytest.importorskip("brise.backends.native.backend")
        backend = f"native-{native.NativeBackend.available_isas()[0]}"
    under_test, checkpoint = open_backend(backend), open_checkpoint(folder)
    tokens = golden.read(NAME, "half").tokens
    weights = place(checkpoint.weights(), under_test.backend.place)
    batch = Batch(tokens, np.arange(40, dtype=np.int32), np.array([0, 40], np.int32), np.arange(40, dtype=np.int32))
    return decoder.forward(under_test.ops, checkpoint.config, weights, batch)
