"""Models that run one weight at a time: the same numbers, and the inputs that calibration sees."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceBackend, ReferenceOps
from brise.checkpoint.read_original import Original, open_original
from brise.checkpoint.write_gguf import write_mix
from brise.engine.scoring import Machine, ScoringModel, calibrate, compare, cut
from brise.engine.streamed import StreamedOps
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.weights import Weight, place
from tests.backends.under_test import UnderTest, open_backend
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.test_write_hf import write_source

WINDOWS = [np.arange(3, 30, dtype=np.int32), np.arange(40, 51, dtype=np.int32), np.arange(5, 9, dtype=np.int32)]


@pytest.fixture(scope="module", params=["reference", "native"])
def under_test(request: pytest.FixtureRequest) -> UnderTest:
    if request.param == "reference":
        return open_backend("reference")
    native = pytest.importorskip("brise.backends.native.backend")
    return open_backend(f"native-{native.NativeBackend.available_isas()[0]}")


@pytest.mark.parametrize("name", ["ministral3_yarn0_tied", "qwen3", "mixtral", "large3"])
def test_streamed_hidden_states_are_the_model_s(under_test: UnderTest, tmp_path: Path, name: str) -> None:
    original = open_original(write_source(tmp_path / "source", name, "F32"))
    batch = Batch(WINDOWS[0], np.arange(27, dtype=np.int32), np.array([0, 27], np.int32), np.arange(27, dtype=np.int32))
    streamed = StreamedOps(under_test.ops, under_test.backend.place)
    expected = decoder.hidden(ReferenceOps(), original.config, original.weights, batch)
    actual = decoder.hidden(streamed, original.config, original.weights, batch)
    assert np.abs(actual - expected).max() < 1e-4


def test_importance_is_the_mean_square_of_inputs(tmp_path: Path) -> None:
    original = open_original(write_tiny(tmp_path / "a.gguf", "llama", tied=False))
    importance = calibrate(machine(), scored(original), original.held_weights(), WINDOWS, "x",
                           lambda tokens: None)
    table = original.weights.tok_embeddings.data[np.concatenate(WINDOWS)]
    norm = np.asarray(original.weights.layers[0].attention_norm.data)
    h = table / np.sqrt(np.mean(table**2, axis=1, keepdims=True) + 1e-5) * norm
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        assert np.allclose(importance.columns(name, 0, (128, 128)), np.mean(h**2, axis=0), rtol=1e-4)
    assert {name for name, weight in original.held_weights() if len(weight.shape) > 1} - {
        "token_embd.weight"} == set(importance.sums)


def test_experts_are_calibrated_each_with_its_own_tokens(tmp_path: Path) -> None:
    original = open_original(write_source(tmp_path / "source", "large3", "F32"))
    importance = calibrate(machine(), scored(original), original.held_weights(), WINDOWS, "x",
                           lambda tokens: None)
    experts = original.config.experts
    assert experts is not None
    sums = importance.sums["blk.1.ffn_up_exps.weight"]
    assert sums.squares.shape == (experts.count, original.config.width)
    assert sums.counts.sum() == experts.per_token * sum(map(len, WINDOWS))


def test_passes_do_not_change_the_importance(tmp_path: Path) -> None:
    original = open_original(write_tiny(tmp_path / "a.gguf", "mistral3"))
    names = original.held_weights()
    once, often = (calibrate(machine(tokens), scored(original), names, WINDOWS, "x", lambda tokens: None)
                   for tokens in (100, 1))
    for name, sums in once.sums.items():
        assert np.allclose(sums.squares, often.sums[name].squares, rtol=1e-4)


def test_a_model_compared_with_itself_and_with_its_copy_in_few_bits(under_test: UnderTest, tmp_path: Path) -> None:
    original = open_original(write_tiny(tmp_path / "a.gguf", "llama"))
    write_mix(original, tmp_path / "b.gguf", "Q4_0")
    on = Machine(under_test.backend, under_test.ops, 30)
    same = compare(on, scored(original), scored(original), WINDOWS, lambda tokens: None)
    assert same.kl_mean == 0 and same.top1_agreement == 1
    assert (same.num_tokens, same.num_windows) == (sum(map(len, WINDOWS)) - 3, 3)
    other = compare(on, scored(original), scored(open_original(tmp_path / "b.gguf")), WINDOWS, lambda tokens: None)
    assert 0 < other.kl_mean < other.kl_max and other.kl_error is not None
    assert other.perplexity_original == pytest.approx(same.perplexity_original)


@pytest.mark.parametrize("tied", [True, False])
def test_blocks_of_the_output_compare_as_all_of_it_does(under_test: UnderTest, tmp_path: Path, tied: bool) -> None:
    original = open_original(write_tiny(tmp_path / "a.gguf", "llama", tied=tied))
    write_mix(original, tmp_path / "b.gguf", "Q4_0")
    quantized = open_original(tmp_path / "b.gguf")
    whole, blocks = (compare(Machine(under_test.backend, under_test.ops, 30, output_numbers, logits),
                             scored(original), scored(quantized), WINDOWS, lambda tokens: None)
                     for output_numbers, logits in ((1 << 24, 1 << 22), (48 * original.config.width, 48 * 5)))
    assert (blocks.num_tokens, blocks.num_windows) == (whole.num_tokens, whole.num_windows)
    for name in ("perplexity_original", "perplexity_quantised", "kl_mean", "kl_error", "kl_max", "top1_agreement"):
        assert asdict(blocks)[name] == pytest.approx(asdict(whole)[name], rel=1e-5), name


def test_perplexity_is_that_of_the_runner(tmp_path: Path) -> None:
    original = open_original(write_tiny(tmp_path / "a.gguf", "llama"))
    quality = compare(machine(), scored(original), scored(original), WINDOWS[:1], lambda tokens: None)
    positions = np.arange(27, dtype=np.int32)
    logits = decoder.forward(ReferenceOps(), original.config, original.weights,
                             Batch(WINDOWS[0], positions, np.array([0, 27], np.int32), positions)).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert quality.perplexity_original == pytest.approx(np.exp(-log_p[np.arange(26), WINDOWS[0][1:]].mean()), rel=1e-5)


def test_texts_are_cut_into_windows_that_begin_with_bos() -> None:
    windows = cut([list(range(10, 1010)), [5], list(range(3))], bos=1, max_tokens=600)
    assert [len(window) for window in windows] == [512, 490] and all(window[0] == 1 for window in windows)
    assert np.concatenate([window[1:] for window in windows]).tolist() == list(range(10, 1010))


def test_weights_are_placed_one_at_a_time(tmp_path: Path) -> None:
    original = open_original(write_tiny(tmp_path / "a.gguf", "llama"))
    forgotten = []
    placed: list[str] = []

    def note(name: str, weight: Weight) -> Weight:
        placed.append(name)
        return weight

    batch = Batch(WINDOWS[2], np.arange(4, dtype=np.int32), np.array([0, 4], np.int32), np.arange(4, dtype=np.int32))
    ops = StreamedOps(ReferenceOps(), note, forget=lambda: forgotten.append(1))
    decoder.hidden(ops, original.config, original.weights, batch)
    assert placed.count("matrix") == len(forgotten) == 14


def machine(pass_tokens: int = 100) -> Machine:
    return Machine(ReferenceBackend(), ReferenceOps(), pass_tokens)


def scored(original: Original) -> ScoringModel:
    return ScoringModel(original.config, place(original.weights, lambda name, weight: weight), original.forget)
