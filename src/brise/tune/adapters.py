"""The trained parameters: new adapters on a placed model, or all of its weights.

Parameters are named by the path of their matrix: `layers.3.attention.wq.a`, `.b` and `.magnitude`, or that path alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch

from brise.backends.torch.weights import row_norms, tensor_of
from brise.checkpoint.adapters.lineage import Lineage, lineage_text
from brise.checkpoint.adapters.merge import LINEAGE_KEY
from brise.checkpoint.read_original import Original
from brise.errors import UnsupportedError
from brise.models.lora import MODULES, LowRanks, place_ends
from brise.models.weights import Array, Attention, Lora, LowRank, Placed, Stored, Weight, Weights, place
from brise.tune.recipe import Recipe

Tensor = torch.Tensor


@dataclass(frozen=True)
class Trained:
    """The model to run, and its trained tensors in a fixed order."""

    weights: Weights
    parameters: Mapping[str, torch.nn.Parameter]

    def low_ranks(self) -> dict[str, LowRank]:
        """The adapter as it stands, by path: NumPy copies in float32."""
        low_ranks: dict[str, LowRank] = {}

        def collect(name: str, weight: Weight) -> Weight:
            if isinstance(weight, Lora) and weight.adapters[0] is not None:
                adapter = weight.adapters[0]
                low_ranks[name] = LowRank(_array(adapter.a), _array(adapter.b), adapter.scale,
                                      None if adapter.magnitude is None else _array(adapter.magnitude))
            return weight

        place(self.weights, collect)
        return low_ranks


def new(weights: Weights, recipe: Recipe) -> Trained:
    """Adapters that change nothing yet (B is 0) or, for the method "full", the weights themselves in float32.

    All lie where the layers do, also those of an embedding or an output head that lies elsewhere.
    """
    return _full(weights) if recipe.method == "full" else _adapters(weights, recipe)


@torch.no_grad()
def begin_with(trained: Trained, low_ranks: LowRanks, scale: float) -> None:
    """Puts the numbers of an adapter into the trained tensors, which products are scaled by `scale`.

    UnsupportedError if it is of other matrices or another rank.
    """
    own = trained.low_ranks()
    if own.keys() != low_ranks.keys():
        name = min(own.keys() ^ low_ranks.keys())
        raise UnsupportedError(f"the adapter to go on from has {'no' if name in own else 'a'} part for {name}, the run "
                               f"has {'one' if name in own else 'none'}", hint="give the --targets it was made with")
    for name, given in low_ranks.items():
        sides = {"a": given.a, "b": given.b * (given.scale / scale), "magnitude": given.magnitude}
        for side, numbers in sides.items():
            parameter = trained.parameters.get(f"{name}.{side}")
            shapes = [None if each is None else tuple(each.shape) for each in (parameter, numbers)]
            if shapes[0] != shapes[1]:
                raise UnsupportedError(f"the adapter to go on from has {name}.{side} of the shape {shapes[1]}, the run "
                                       f"has {shapes[0]}", hint="give the --rank and --method it was made with")
            if parameter is not None:
                parameter.copy_(torch.from_numpy(np.asarray(numbers, np.float32)))


def _adapters(weights: Weights, recipe: Recipe) -> Trained:
    device = tensor_of(weights.norm).device
    parameters: dict[str, torch.nn.Parameter] = {}

    def put(name: str, weight: Weight) -> Weight:
        if not recipe.takes(name):
            return weight
        if not isinstance(weight, Placed) or len(weight.shape) != 2:
            raise UnsupportedError(f"{name} is no plain matrix; adapters are trained on plain matrices",
                                   hint=_hint(weights))
        adapter = _new_adapter(name, weight, recipe, device)
        parameters[f"{name}.a"], parameters[f"{name}.b"] = adapter.a, adapter.b
        if adapter.magnitude is not None:
            parameters[f"{name}.magnitude"] = adapter.magnitude
        return Lora(weight, (adapter,))

    adapted = place_ends(weights, put)
    if not parameters:
        raise UnsupportedError(f"the model has none of the target modules {', '.join(recipe.targets)}")
    return Trained(adapted, parameters)


def _hint(weights: Weights) -> str:
    """What to do where a target is no plain matrix."""
    if not isinstance(weights.layers[0].attention, Attention):
        return "models with latent attention can be served, not trained here"
    attention = [module for module, path in MODULES.items() if path.startswith("attention.")]
    return f"experts are not trained here; name the matrices of attention: --targets {','.join(attention)}"


def _new_adapter(name: str, weight: Placed, recipe: Recipe, device: torch.device) -> LowRank:
    """A is uniform in +-1/sqrt(in), as in PEFT; the random numbers of a matrix depend on its name and the seed only."""
    rows, cols = weight.shape
    seed = int.from_bytes(blake2b(f"{recipe.seed} {name}".encode(), digest_size=7).digest(), "little")
    generator = torch.Generator().manual_seed(seed)
    a = (torch.rand(recipe.rank, cols, generator=generator) * 2 - 1) / math.sqrt(cols)
    magnitude = None
    if recipe.method == "dora":
        magnitude = torch.nn.Parameter(row_norms(weight).float().to(device))
    return LowRank(torch.nn.Parameter(a.to(device)), torch.nn.Parameter(torch.zeros(rows, recipe.rank, device=device)),
                   recipe.scale, magnitude)


def _full(weights: Weights) -> Trained:
    parameters: dict[str, torch.nn.Parameter] = {}

    def put(name: str, weight: Weight) -> Weight:
        parameter = torch.nn.Parameter(tensor_of(weight).float())
        parameters[name] = parameter
        return Placed(weight.shape, parameter)

    return Trained(place(weights, put), parameters)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().float().cpu().numpy().copy()


def with_numbers(original: Original, numbers: Mapping[str, Array], lineage: Lineage) -> Original:
    """The checkpoint with these float32 arrays, by path, as its weights, and everything else unchanged."""
    def put(path: str, weight: Weight) -> Weight:
        if path not in numbers or tuple(numbers[path].shape) != weight.shape:
            raise UnsupportedError(f"there are no trained numbers of the shape {weight.shape} for {path}")
        own = numbers[path]
        return Stored("F32", weight.shape, lambda first, last: own[first:last])

    return original.with_weights(place(original.weights, put), {LINEAGE_KEY: lineage_text(lineage)})
