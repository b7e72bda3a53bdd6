"""The table of model families agrees with itself, with the goldens and with transformers' classes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from brise.models.families import FAMILIES, KEYS, LAYER_TENSORS, ModelFamily, keys_of
from brise.models.other_families import refusal
from tests.goldens import golden


def test_every_family_has_a_golden() -> None:
    assert {golden.read(name, "half").config.family for name in golden.NAMES} == FAMILIES.keys()


def test_families_of_one_gguf_architecture_differ_by_experts_or_their_window() -> None:
    """Or by their names in Hugging Face's folders alone, and a GGUF file is one of the first."""
    for name, family in FAMILIES.items():
        others = [other for other in FAMILIES.values() if other is not family
                  and other.gguf_architecture == family.gguf_architecture]
        assert all(other.has_experts != family.has_experts or other.has_window != family.has_window
                   or other.hf_layer_types != family.hf_layer_types
                   for other in others), name


@pytest.mark.parametrize("format", ["gguf", "hf", "native"])
def test_no_two_weights_of_a_layer_have_one_name(format: Any) -> None:
    names = [names.of(format)[0] for path, names in LAYER_TENSORS.items()
             if names.of(format) and path not in ("attention.bq", "attention.bk", "attention.bv")]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", FAMILIES)
def test_defaults_are_those_of_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    family = FAMILIES[name]
    theirs = _config_class(transformers, family)()
    assert theirs.model_type == name and hasattr(transformers, f"{family.hf_class}ForCausalLM")
    values = dict(family.hf_defaults)
    theta = values.pop("rope_theta", None)
    assert theta is None or theirs.rope_parameters["rope_theta"] == theta
    rope: Any = values.pop("rope_parameters", {})
    assert {key: theirs.rope_parameters[key] for key in rope} == dict(rope)
    assert {key: getattr(theirs, key) for key in values} == values


@pytest.mark.parametrize("name", FAMILIES)
def test_every_size_that_transformers_gives_a_value_has_a_default(name: str) -> None:
    """A key that a config.json leaves out, because the class has it, is not missing here."""
    transformers = pytest.importorskip("transformers")
    family = FAMILIES[name]
    theirs = _config_class(transformers, family)
    for path in KEYS:
        if path.startswith(("latent.", "experts.", "rope.")) and not family.has_latent_attention:
            continue
        for key in keys_of(name, path, "hf")[:1]:
            value = getattr(theirs, key, None)
            if path not in ("head_dim", "num_kv_heads", "experts.scale") and value is not None:
                assert family.hf_defaults[key] == value, key


def _config_class(transformers: Any, family: ModelFamily) -> Any:
    """The class of a text model's config; that of a model with images as well has another name."""
    is_inner = hasattr(transformers, f"{family.hf_class}TextConfig")
    return getattr(transformers, f"{family.hf_class}{'Text' if is_inner else ''}Config")


@pytest.mark.parametrize(("name", "message"), [
    ("gemma4", "Gemma 4, its per-layer embeddings"), ("qwen3_moe", "Qwen with experts"), ("qwen3moe", "Qwen with exp"),
    ("qwen3_5", r"Qwen3.5 \(gated DeltaNet\), it needs a state"), ("lfm2", "LFM.*state"), ("nemotron_h", "Mamba-2"),
    ("gpt_oss", "gpt-oss, its attention sinks"), ("gpt-oss", "gpt-oss"),
    ("granitemoe", "dense Granite 3 and 4 run"), ("phi4flash", "Phi-4-mini runs"), ("phimoe", "MoE"),
    ("mamba2", "recurrent layers"), ("deepseek_v3", "DeepSeek-V3"), ("llama4", "Llama 4"), ("bert", "decoders"),
    ("nobody-knows", "'nobody-knows', a family that brise does not know; it runs llama, qwen3")])
def test_a_refusal_names_the_family_and_says_where_support_stands(name: str, message: str) -> None:
    error = refusal("model_type", name, "llama, qwen3")
    assert re.search(message, str(error.args[0]))
    assert "llama, qwen3" in f"{error.args[0]} {error.hint}"


def test_no_family_that_runs_is_refused() -> None:
    runs = {*FAMILIES, *(name for family in FAMILIES.values() for name in family.gguf_architectures)}
    assert not {name for name in runs if "does not know" not in str(refusal("x", name, "").args[0])}
