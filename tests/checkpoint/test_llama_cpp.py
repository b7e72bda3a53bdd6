"""llama.cpp loads what brise writes and predicts the same.

Needs llama-cpp-python, in this Python or in the one that BRISE_TEST_LLAMA_PYTHON names; else skipped.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.checkpoint.adapters.peft import AdapterFile
from brise.checkpoint.gguf.write_adapter import write_gguf_adapter
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import write_mix
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.lora import adapted
from brise.models.weights import Array, Weights
from brise.text.tokenizer import Tokenizer
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.checkpoint.test_gguf_vocabulary import TEXTS
from tests.checkpoint.test_write_hf import write_source

SCRIPT = Path(__file__).parent / "llama_logits.py"
PROSE = ("A breeze is a light wind. In the Beaufort scale it is a wind of force two to six, which is felt on the face, "
         "moves leaves and small branches, and raises dust and loose paper.")
# The root of the mean square of the difference, in units of the logits' own spread. llama.cpp rounds activations to
# F16 beside F16 weights, and to int8 in groups of 32 or (K formats) 256 beside blocks; the reference does not.
CLOSE = {"F16": 0.002, "BF16": 0.02, "Q8_0": 0.1, "Q4_0": 0.1, "Q4_K_M": 0.15}


@pytest.fixture(scope="session")
def llama_python() -> str:
    given = os.environ.get("BRISE_TEST_LLAMA_PYTHON")
    if given is None and importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("needs llama-cpp-python, here or in BRISE_TEST_LLAMA_PYTHON")
    return given or sys.executable


@pytest.mark.parametrize("mix", CLOSE)
def test_the_real_model(llama_python: str, smollm2_path: Path, tmp_path: Path, mix: str) -> None:
    write_mix(open_original(smollm2_path), tmp_path / "a.gguf", mix, requantize=True)
    tokens = np.array(Tokenizer.from_gguf(open_original(smollm2_path).metadata).encode(PROSE), np.int32)
    ours, theirs = our_logits(tmp_path / "a.gguf", tokens), their_logits(llama_python, tmp_path / "a.gguf", tokens)
    assert distance(ours, theirs) < CLOSE[mix]
    assert np.mean(ours.argmax(axis=1) == theirs.argmax(axis=1)) > (0.97 if mix == "F16" else 0.85)


@pytest.mark.parametrize("mix", CLOSE)
def test_a_tiny_ministral(llama_python: str, tmp_path: Path, mix: str) -> None:
    write_mix(open_original(write_tiny(tmp_path / "a.gguf", "mistral3")), tmp_path / "b.gguf", mix)
    tokens = np.arange(10, 90, dtype=np.int32)  # crosses its temperature period of 16 several times
    ours, theirs = our_logits(tmp_path / "b.gguf", tokens), their_logits(llama_python, tmp_path / "b.gguf", tokens)
    assert distance(ours, theirs) < CLOSE[mix]


@pytest.mark.parametrize("name", ["llama_tied", "llama3_untied", "qwen2", "qwen3", "smollm3", "gemma3", "granite",
                                  "granite4", "phi4_long",
                                  "ministral3_yarn0_untied", "ministral3_yarn2_untied"])
def test_a_hugging_face_folder(llama_python: str, tmp_path: Path, name: str) -> None:
    write_mix(open_original(write_source(tmp_path / "source", name)), tmp_path / "a.gguf", "F32")
    tokens = np.arange(14, 54, dtype=np.int32)
    ours, theirs = our_logits(tmp_path / "a.gguf", tokens), their_logits(llama_python, tmp_path / "a.gguf", tokens)
    assert distance(ours, theirs) < 0.002


def test_large_3_with_its_softmax_scale(llama_python: str, tmp_path: Path) -> None:
    original = open_original(write_source(tmp_path / "source", "large3"))
    betas = {"mistral4.rope.scaling.yarn_beta_fast": 32.0, "mistral4.rope.scaling.yarn_beta_slow": 1.0}
    # llama.cpp takes these, the real model's, for every file of this architecture; the tiny model has others.
    write_mix(replace(original, metadata=dict(original.metadata) | betas), tmp_path / "a.gguf", "F32")
    tokens = np.arange(14, 54, dtype=np.int32)
    ours, theirs = our_logits(tmp_path / "a.gguf", tokens), their_logits(llama_python, tmp_path / "a.gguf", tokens)
    assert distance(ours, theirs) < 0.002


@pytest.mark.parametrize("name", ["llama_untied", "qwen3", "ministral3_yarn0_untied", "granite", "phi4_long"])
def test_an_adapter(llama_python: str, tmp_path: Path, name: str) -> None:
    """A matrix of another rank, one of another scale, and one without."""
    original = open_original(write_source(tmp_path / "source", name))
    write_mix(original, tmp_path / "a.gguf", "F32")
    low_ranks = random_low_ranks(original.config, 1)
    low_ranks |= {path: replace(low_rank, scale=0.5) for path, low_rank in low_ranks.items() if path.endswith("wk")}
    low_ranks |= random_low_ranks(original.config, 2, rank=5, modules=("up_proj",))
    del low_ranks["layers.0.attention.wv"]
    write_gguf_adapter(tmp_path / "b.gguf", AdapterFile(low_ranks, 3, 6.0), LINEAGE, original.config, "F32",
                       is_tied=original.is_tied)
    tokens = np.arange(14, 54, dtype=np.int32)
    weights = adapted(original.weights, low_ranks)
    ours = logits(original.config, weights, tokens)
    theirs = their_logits(llama_python, tmp_path / "a.gguf", tokens, str(tmp_path / "b.gguf"))
    assert distance(our_logits(tmp_path / "a.gguf", tokens), ours) > 0.1
    assert distance(ours, theirs) < 0.002


def test_tokens_of_a_text(llama_python: str, tmp_path: Path) -> None:
    write_mix(open_original(write_tiny(tmp_path / "a.gguf", "mistral3")), tmp_path / "b.gguf", "Q8_0")
    tokenizer = Tokenizer.from_gguf(open_original(tmp_path / "b.gguf").metadata)
    for text in TEXTS[:2]:
        run(llama_python, tmp_path / "b.gguf", tmp_path / "out.npy", "--text", text)
        assert np.load(tmp_path / "out.npy").tolist() == tokenizer.encode(text)


def our_logits(path: Path, tokens: Array) -> Array:
    original = open_original(path)
    return logits(original.config, original.weights, tokens)


def logits(config: Config, weights: Weights, tokens: Array) -> Array:
    positions = np.arange(len(tokens), dtype=np.int32)
    return decoder.forward(ReferenceOps(), config, weights,
                           Batch(tokens, positions, np.array([0, len(tokens)], np.int32), positions))


def their_logits(python: str, path: Path, tokens: Array, *adapters: str) -> Array:
    out = path.with_suffix(".npy")
    run(python, path, out, ",".join(map(str, tokens)), *adapters)
    return np.load(out)


def run(python: str, *words: object) -> None:
    subprocess.run([python, str(SCRIPT), *map(str, words)], check=True, timeout=120, env={"PATH": os.environ["PATH"]})


def distance(ours: Array, theirs: Array) -> float:
    return float(np.sqrt(np.mean((ours - theirs)**2)) / ours.std())
