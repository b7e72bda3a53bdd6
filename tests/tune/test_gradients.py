"""Loss and gradients against transformers and PEFT: tiny models of every family, each matrix by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brise.backends.torch.ops import TorchOps
from brise.data.example import EncodedRow
from brise.errors import UnsupportedError
from brise.models import decoder
from brise.models.rope import Layout
from brise.models.weights import Array
from brise.tune import adapters, losses
from brise.tune.adapters import Trained
from brise.tune.packing import pack
from brise.tune.recipe import Recipe
from brise.tune.run_plan import trained_sizes
from tests.goldens import golden
from tests.tune import families
from tests.tune.families import FAMILIES, JOINED, Pair, relative_error

# Both sides compute in float32, in other orders of summation and with other formulas. A logit is off by 5e-5
# (tests/tolerances.py, GOLDEN_LOGITS), so a probability by 5e-5 of itself, and so is the slope that goes back; on its
# way it meets the same two layers again, whose own errors are as large: twice 5e-5. Relative to the norm of a matrix'
# gradient, of which parts may cancel. Measured: at most 3e-6; a wrong sign, scale or row order is off by more than 0.1.
GRADIENT = 1e-4
LOSS = 1e-5  # of the mean over targets, about 6: the logits' errors have both signs


def run(pair: Pair, given: list[EncodedRow]) -> tuple[float, dict[str, float]]:
    """|difference of losses| / loss, and each parameter's relative error; both models have gone back."""
    wanted = families.peer_loss(pair.peer, given)
    wanted.backward()
    loss = backward(pair.trained, pair, given)
    theirs = named_gradients(pair)
    ours = families.gradients(pair.trained)
    assert theirs.keys() == ours.keys()
    errors = {path: relative_error(families.from_brise(path, grad, pair.config), theirs[path])
              for path, grad in ours.items()}
    return abs(loss / float(wanted.detach()) - 1), errors


def backward(trained: Trained, pair: Pair, given: list[EncodedRow]) -> float:
    packed = pack(given)
    hidden = decoder.hidden(TorchOps(), pair.config, trained.weights, packed.batch)
    loss = losses.cross_entropy(hidden, trained.weights.output, torch.from_numpy(packed.targets)) / len(packed.targets)
    loss.backward()
    return float(loss.detach())


def named_gradients(pair: Pair) -> dict[str, Array]:
    """transformers' gradients by brise's path."""
    adapted = {path: parameter.grad.numpy() for path, parameter in families.adapter_parameters(pair.peer)
               if parameter.grad is not None}
    if adapted:
        return adapted
    return {path_of(name): rows for own, parameter in pair.peer.named_parameters()
            for name, rows in families.parts_of(pair.name, own, parameter.grad).items()}


def path_of(name: str) -> str:
    """layers.0.attention.wq of the goldens' layers.0.wq."""
    *front, tail = name.split(".")
    part = {"wq": "attention", "wk": "attention", "wv": "attention", "wo": "attention", "bq": "attention",
            "bk": "attention", "bv": "attention", "q_norm": "attention", "k_norm": "attention", "w1": "feed_forward",
            "w2": "feed_forward", "w3": "feed_forward"}.get(tail)
    return ".".join([*front, *([part] if part else []), tail])


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("name", FAMILIES)
def test_lora_gradients_are_pefts(name: str, layout: Layout) -> None:
    pair = families.with_adapters(name, layout, Recipe(rank=4, alpha=8))
    loss, errors = run(pair, families.rows(3))
    assert len(errors) == pair.config.num_layers * 7 * 2
    assert loss < LOSS
    assert max(errors.values()) < GRADIENT, errors


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied", "granite", "gemma3"])
def test_gradients_of_adapters_on_embedding_and_output_are_pefts(name: str) -> None:
    recipe = Recipe(rank=4, alpha=8, targets=("q_proj", "embed_tokens", "lm_head"))
    pair = families.with_adapters(name, "half", recipe)
    loss, errors = run(pair, families.rows(3))
    assert len(errors) == (pair.config.num_layers + 2) * 2
    assert loss < LOSS
    assert max(errors.values()) < GRADIENT, errors


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied"])
def test_the_plan_counts_adapters_on_embedding_and_output(name: str) -> None:
    recipe, weights = Recipe(rank=4, targets=("q_proj", "embed_tokens", "lm_head")), golden.read(name, "half").weights
    trained = adapters.new(families.placed(weights), recipe)
    assert sum(trained_sizes(weights, recipe)) == sum(parameter.numel() for parameter in trained.parameters.values())


def test_gradients_of_adapters_beside_experts_are_pefts() -> None:
    recipe = Recipe(rank=4, alpha=8, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    pair = families.with_adapters("mixtral", "interleaved", recipe)
    loss, errors = run(pair, families.rows(3))
    assert len(errors) == pair.config.num_layers * 4 * 2
    assert loss < LOSS
    assert max(errors.values()) < GRADIENT, errors


@pytest.mark.parametrize("name", ["llama_tied", "qwen2", "ministral3_yarn2_untied"])
def test_dora_gradients_are_pefts(name: str) -> None:
    pair = families.with_adapters(name, "half", Recipe(method="dora", rank=4, alpha=8))
    loss, errors = run(pair, families.rows(3))
    assert len(errors) == pair.config.num_layers * 7 * 3
    assert loss < LOSS
    assert max(errors.values()) < GRADIENT, errors


@pytest.mark.parametrize("name", [*FAMILIES, *JOINED])
def test_gradients_of_all_weights_are_transformers(name: str) -> None:
    pair = families.full(name, "half")
    loss, errors = run(pair, families.rows(3))
    assert loss < LOSS
    assert max(errors.values()) < GRADIENT, errors


def test_a_shared_prompt_has_pefts_gradients() -> None:
    pair = families.with_adapters("mistral_window", "half", Recipe(rank=4, alpha=8))
    given = families.rows(3, shared=20)
    assert pack(given).batch.parents is not None
    loss, errors = run(pair, given)
    assert loss < LOSS
    assert max(errors.values()) < GRADIENT, errors


def test_one_target_module_leaves_the_others_alone() -> None:
    pair = families.with_adapters("llama_tied", "half", Recipe(rank=4, alpha=8, targets=("down_proj",)))
    _, errors = run(pair, families.rows(2))
    assert {path.split(".", 2)[2] for path in errors} == {"feed_forward.w2.a", "feed_forward.w2.b"}
    assert max(errors.values()) < GRADIENT, errors


def test_the_oracle_sees_a_wrong_row_order() -> None:
    pair = families.with_adapters("llama_tied", "interleaved", Recipe(rank=4, alpha=8))
    path = "layers.0.attention.wq.b"
    moved = pair.trained.parameters[path]
    moved.data = torch.from_numpy(np.ascontiguousarray(golden.halves(moved.detach().numpy(), pair.config.num_heads)))
    _, errors = run(pair, families.rows(3))
    assert errors[path] > 0.1


@pytest.mark.parametrize("target", ["q_proj", "gate_proj"])
def test_latent_attention_and_experts_take_no_adapters(target: str) -> None:
    weights = families.placed(golden.read("large3", "interleaved").weights)
    with pytest.raises(UnsupportedError, match="adapters|none of the target modules q_proj"):
        adapters.new(weights, Recipe(targets=(target,)))


def test_experts_are_refused_with_the_targets_that_the_model_takes() -> None:
    with pytest.raises(UnsupportedError, match="feed_forward.w1 is no plain matrix") as caught:
        adapters.new(families.placed(golden.read("mixtral", "half").weights), Recipe())
    assert caught.value.hint == "experts are not trained here; name the matrices of attention: " \
        "--targets q_proj,k_proj,v_proj,o_proj"
