"""Names the families that brise does not run, and says where support stands: what refusals of a model tell.

By `model_type` of a config.json and by `general.architecture` of a GGUF file, as transformers 5.23.0 and `gguf` 0.19
spell them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from brise.errors import UnsupportedError

_STATE = "it needs a state for each sequence beside its pages of keys and values, which is planned"
_MOE = "its way of routing experts is not implemented"
_VISION = "its encoder of images is not implemented"
_NORMS = "its norms and soft-caps are not implemented"
_OLD = "its block (LayerNorm, biases, other activations) is not planned"

# Spelling without -, _ and . to what people call it, and what is missing.
_OTHERS: Mapping[str, tuple[str, str]] = MappingProxyType({
    "gemma": ("Gemma", _NORMS), "gemma2": ("Gemma 2", _NORMS),
    **dict.fromkeys(("gemma3n", "gemma3ntext"), ("Gemma 3n", "its per-layer embeddings are not implemented")),
    **dict.fromkeys(("gemma4", "gemma4text", "gemma4unified"), (
        "Gemma 4", "its per-layer embeddings and shared keys and values are next")),
    **dict.fromkeys(("qwen2moe", "qwen3moe", "qwen3vlmoe"), ("Qwen with experts", _MOE)),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35text", "qwen35moe", "qwen4exp"), (
        "Qwen3.5 (gated DeltaNet)", _STATE)),
    **dict.fromkeys(("qwen2vl", "qwen25vl", "qwen3vl", "qwen25omni", "qwen3omni"), ("Qwen-VL", _VISION)),
    **dict.fromkeys(("lfm2", "lfm2moe", "lfm2vl", "lfm3"), ("LFM (short convolutions)", _STATE)),
    **dict.fromkeys(("nemotronh", "nemotronhmoe"), ("Nemotron-H (Mamba-2)", _STATE)),
    "nemotron": ("Nemotron", _OLD),
    "gptoss": ("gpt-oss", "its attention sinks and clamped activation are not implemented"),
    **dict.fromkeys(("granitemoe", "granitemoeshared"), (
        "Granite with experts", f"{_MOE}; dense Granite 3 and 4 run")),
    **dict.fromkeys(("phi", "phi2"), ("Phi-1 and Phi-2", f"{_OLD}; Phi-3 and Phi-4-mini run")),
    **dict.fromkeys(("phimoe", "phi3small"), ("Phi-3.5-MoE and Phi-3-small", "neither is planned; Phi-3-mini runs")),
    "phi4flash": ("Phi-4-mini-flash", f"{_STATE}; Phi-4-mini runs"),
    **dict.fromkeys(("phi4multimodal", "phi4mm", "phi3v"), ("Phi with images", f"{_VISION}; Phi-4-mini runs")),
    **dict.fromkeys(("mamba", "mamba2", "falconmamba", "falconh1", "jamba", "bamba", "zamba", "zamba2", "rwkv", "rwkv6",
                     "rwkv7", "recurrentgemma", "plamo2", "kimilinear", "minimax"), (
        "a model with recurrent layers", _STATE)),
    "deepseekv2": ("DeepSeek-V2", _MOE), "deepseekv3": ("DeepSeek-V3", _MOE),
    **dict.fromkeys(("deepseek", "deepseekv32", "deepseekv4", "kimik2", "kimik3", "glm4moe", "bailingmoe",
                     "bailingmoe2", "dots1", "ernie45moe", "hunyuanmoe", "olmoe", "dbrx", "grok", "arctic",
                     "minimaxm2"), (
        "a model with experts", _MOE)),
    **dict.fromkeys(("llama4", "llama4text"), ("Llama 4", _MOE)),
    **dict.fromkeys(("mllama", "idefics3", "smolvlm", "llava", "paligemma", "internvl", "minicpmv", "clip"), (
        "a model with images of another kind", f"{_VISION}; Mistral's models with images run")),
    **dict.fromkeys(("commandr", "cohere", "cohere2", "olmo", "olmo2", "starcoder2", "stablelm", "gptneox", "gpt2",
                     "gptj", "bloom", "falcon", "mpt", "opt", "glm4", "chatglm", "exaone", "exaone4", "minicpm",
                     "minicpm3", "internlm2", "baichuan",
                     "bitnet", "apertus", "arcee", "seedoss", "hunyuandense", "ernie45",
                     "plamo", "orion", "xverse", "openelm"), ("a dense model of another family", "it is not planned")),
    **dict.fromkeys(("bert", "nomicbert", "modernbert", "xlmroberta", "t5", "t5encoder"), (
        "an encoder", "brise runs decoders; an embedding model on a decoder runs")),
    **dict.fromkeys(("whisper", "voxtralrealtime", "granitespeech"), (
        "a model of speech", "of these Voxtral Mini and Small run")),
})


def mamba_layers(what: str, shown: object) -> UnsupportedError:
    """The error for a Granite 4 some of whose layers have no attention; `shown` is what the file says of them."""
    return UnsupportedError(f"{what} is {shown}: brise does not run Granite 4 with Mamba layers, {_STATE}",
                            hint="Granite 4 without them (350M, 1B, micro) runs")


def refusal(what: str, name: str, known: str) -> UnsupportedError:
    """The error for a model of another family: `what` says where its name stands, `known` which ones brise runs."""
    shown = name if len(name) <= 60 and name.isprintable() else repr(name[:60])
    other = _OTHERS.get(re.sub(r"[-_. ]", "", name[:60].lower()))
    if other is None:
        return UnsupportedError(f"{what} is {shown!r}, a family that brise does not know; it runs {known}",
                                hint="docs/guides/models.md lists what is planned")
    family, missing = other
    return UnsupportedError(f"{what} is {shown!r}: brise does not run {family}, {missing}", hint=f"it runs {known}")
