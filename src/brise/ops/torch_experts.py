"""Stacks of matrices in torch: one for each head, or one for each expert that a router picks.

Legend: T tokens, D width, H heads, E numbers a head, O outputs, F ffn width, X experts.
"""

from __future__ import annotations

import torch

from brise.models.weights import Placed, Weight
from brise.ops.torch_functions import silu_mul
from brise.ops.torch_linear import linears
from brise.ops.torch_weights import Handle, stack_of

Tensor = torch.Tensor


def heads_linear(x_THE: Tensor, stack: Weight) -> Tensor:
    """Head h times matrix h transposed: (T, H, O)."""
    return torch.stack([_linear(x_THE[:, head], matrix) for head, matrix in enumerate(stack_of(stack))], dim=1)


def route(logits_TX: Tensor, per_token: int, scale: float) -> Tensor:
    """Gates (T, X): see Ops.route. The choice has no gradient, the gates do."""
    best = torch.sort(logits_TX, dim=1, descending=True, stable=True).indices[:, :per_token]
    is_chosen = torch.zeros_like(logits_TX, dtype=torch.bool).scatter_(1, best, True)
    gates = torch.softmax(logits_TX, dim=1) * is_chosen
    return gates / (gates.sum(dim=1, keepdim=True) + 1e-20) * scale


def experts(x_TD: Tensor, gates_TX: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
    """The sum of the chosen experts, each times its gate."""
    out = torch.zeros(x_TD.shape, dtype=gates_TX.dtype, device=x_TD.device)
    for index, (gate, down, up) in enumerate(zip(stack_of(w1), stack_of(w2), stack_of(w3), strict=True)):
        chosen = torch.nonzero(gates_TX[:, index])[:, 0]
        if not len(chosen):
            continue
        own = x_TD[chosen]
        y = _linear(silu_mul(_linear(own, gate), _linear(own, up)), down)
        out = out.index_add(0, chosen, gates_TX[chosen, index, None] * y)
    return out


def _linear(x: Tensor, matrix: Handle) -> Tensor:
    return linears(x, (Placed((0, x.shape[-1]), matrix),), None, {})[0]
