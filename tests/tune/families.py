"""Tiny models of every family twice over: transformers' (with PEFT's adapters) and brise's, with the same numbers.

transformers has q and k rows in halves. Where brise's rope is interleaved (a GGUF), rows of wq, wk and of their B are
permuted on the way in, and gradients of them on the way back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch

from brise.backends.torch import weights as torch_weights
from brise.data.example import EncodedRow
from brise.models.config import Config
from brise.models.lora import EMBEDDING, ENDS, MODULES
from brise.models.rope import Layout
from brise.models.weights import Array, Weights, place
from brise.tune import adapters
from brise.tune.adapters import Trained
from brise.tune.recipe import Recipe
from tests.goldens import golden, make, make_mixtral

TURNED = ("attention.wq", "attention.wk")
FAMILIES = ("llama_tied", "llama_untied", "llama3_untied", "llama_linear", "mistral", "mistral_window",
            "ministral3_yarn0_tied", "ministral3_yarn2_untied", "qwen2", "qwen3", "smollm3", "granite", "gemma3")
JOINED = ("phi3", "phi4_long", "granite4")  # their PEFT adapters have other names: tests/checkpoint/test_adapters.py


@dataclass(frozen=True)
class Pair:
    """`peer` is the transformers or PEFT model, `trained` brise's."""

    name: str
    config: Config
    peer: Any
    trained: Trained


def peer_of(name: str) -> Any:
    """The transformers model of a golden, in float32."""
    is_mixtral = name.startswith("mixtral")
    model = (make_mixtral.build(next(item for item in make_mixtral.goldens() if item.name == name)) if is_mixtral
             else make.build(next(item for item in make.goldens() if item.name == name)))
    family = model.config.model_type
    with np.load(golden.FOLDER / f"tiny_{name}.npz") as file:
        for own, parameter in model.named_parameters():
            paths = [make_mixtral.brise_name(own)] if is_mixtral else parts_of(name, own, parameter)
            weight = (np.concatenate([file[path] for path in paths]) / golden.GRID).astype(np.float32)
            less = np.float32(family == "gemma3_text" and own.endswith("norm.weight"))  # transformers adds it
            parameter.data = torch.from_numpy(weight - less)
    return model


def parts_of(name: str, own: str, numbers: Any) -> dict[str, Array]:
    """A parameter of transformers, or its gradient, by the goldens' names; some are several matrices in one."""
    settings = next(item for item in make.goldens() if item.name == name)
    return make.split(own, np.asarray(numbers.detach()), settings)


def placed(weights: Weights, keep: torch_weights.Keep = "dense") -> Weights:
    """On the CPU in float32; with `keep` "packed" blocks stay blocks."""
    return place(weights, lambda name, weight: torch_weights.place(
        name, weight, torch.device("cpu"), torch.float32, keep))


def with_adapters(name: str, layout: Layout, recipe: Recipe, seed: int = 0) -> Pair:
    """Both with the same random A and B (not zero, so that both have gradients) and the same magnitudes."""
    read = golden.read(name, layout)
    trained = adapters.new(placed(read.weights), recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers in a way that will go
        warnings.filterwarnings("ignore", "Model with `tie_word_embeddings")
        peer = peft.get_peft_model(peer_of(name), peft.LoraConfig(
            r=recipe.rank, lora_alpha=int(recipe.alpha), lora_dropout=0.0, target_modules=list(recipe.targets),
            use_dora=recipe.method == "dora", task_type="CAUSAL_LM"))
    rng = np.random.default_rng(seed)
    theirs = dict(adapter_parameters(peer))
    for path, parameter in trained.parameters.items():
        drawn = rng.normal(0, 0.1, tuple(theirs[path].shape)).astype(np.float32)
        if path.endswith(".magnitude"):
            drawn = theirs[path].detach().numpy() * (1 + drawn)
        theirs[path].data = torch.from_numpy(drawn.copy())
        parameter.data = torch.from_numpy(to_brise(path, drawn, read.config))
    assert theirs.keys() == trained.parameters.keys()
    return Pair(name, read.config, peer, trained)


def full(name: str, layout: Layout) -> Pair:
    """All weights are trained."""
    read = golden.read(name, layout)
    return Pair(name, read.config, peer_of(name), adapters.new(placed(read.weights), Recipe(method="full")))


def adapter_parameters(peer: Any) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """PEFT's trained parameters by brise's path: layers.0.attention.wq.b."""
    kinds = {"lora_A": "a", "lora_B": "b", "lora_magnitude_vector": "magnitude",
             "lora_embedding_A": "b", "lora_embedding_B": "a"}  # of the embedding, turned
    for name, parameter in peer.named_parameters():
        words = name.split(".")
        kind = next((kind for kind in kinds if kind in words), None)
        if kind is None:
            continue
        module = words[words.index(kind) - 1]
        if module in ENDS:
            yield f"{ENDS[module]}.{kinds[kind]}", parameter
        else:
            yield f"layers.{words[words.index('layers') + 1]}.{MODULES[module]}.{kinds[kind]}", parameter


def to_brise(path: str, rows: Array, config: Config) -> Array:
    """Rows in transformers' order as brise has them; A has none that are permuted, the embedding's sides are turned."""
    if path.startswith(f"{EMBEDDING}."):
        return rows.T
    heads = _turned_heads(path, config)
    return rows if heads is None else golden.interleave(rows, heads, config.rope.dim)


def from_brise(path: str, rows: Array, config: Config) -> Array:
    """The inverse."""
    if path.startswith(f"{EMBEDDING}."):
        return rows.T
    heads = _turned_heads(path, config)
    return rows if heads is None else golden.halves(rows, heads, config.rope.dim)


def _turned_heads(path: str, config: Config) -> int | None:
    words = path.split(".")
    if config.rope.layout != "interleaved" or words[-1] == "a":
        return None
    heads = {"wq": config.num_heads, "bq": config.num_heads, "wk": config.num_kv_heads, "bk": config.num_kv_heads,
             "q_norm": 1, "k_norm": 1}
    return next((heads[word] for word in words if word in heads), None)


def rows(count: int, *, seed: int = 0, shared: int = 0, vocab_size: int = make.VOCAB_SIZE) -> list[EncodedRow]:
    """Random rows of 6 to 30 tokens after `shared` common ones; most of their own are learned, with gaps."""
    rng = np.random.default_rng(seed)
    common = rng.integers(make.PADDING_ID + 1, vocab_size, shared)
    made = []
    for index in range(count):
        own = rng.integers(make.PADDING_ID + 1, vocab_size, int(rng.integers(6, 31)))
        is_target = np.zeros(shared + len(own), bool)
        is_target[shared + 3:] = rng.random(len(own) - 3) < 0.7
        is_target[-1] = True
        made.append(EncodedRow(np.concatenate([common, own]).astype(np.int32), is_target, f"rows:{index + 1}"))
    return made


def peer_loss(peer: Any, given: list[EncodedRow]) -> torch.Tensor:
    """The mean over all learned tokens of one padded batch, as transformers computes it."""
    longest = max(len(row.tokens) for row in given)
    ids = np.full((len(given), longest), make.PADDING_ID + 1, np.int64)
    labels, mask = np.full_like(ids, -100), np.zeros_like(ids)
    for index, row in enumerate(given):
        length = len(row.tokens)
        ids[index, :length], mask[index, :length] = row.tokens, 1
        labels[index, :length] = np.where(row.is_target, row.tokens, -100)
    loss: torch.Tensor = peer(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask),
                              labels=torch.from_numpy(labels), use_cache=False).loss
    return loss


def gradients(trained: Trained) -> Mapping[str, Array]:
    """By path, in brise's order."""
    found = {}
    for name, parameter in trained.parameters.items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.numpy().copy()
    return found


def relative_error(got: Array, wanted: Array) -> float:
    """Norm of the difference over the norm of what is wanted."""
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
