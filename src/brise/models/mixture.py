"""Feed-forward networks: the plain one, and the one of experts (Mistral Large 3).

Legend: T tokens, D width, F ffn width, X experts.
"""

from __future__ import annotations

from brise.models.config import Config
from brise.models.weights import Array, FeedForward, Mixture
from brise.ops.contract import Ops


def feed_forward(ops: Ops, config: Config, weights: Mixture, h_TD: Array) -> Array:
    """Sum of the chosen experts, each times its gate, and the shared expert, which has none."""
    assert config.experts is not None, "a layer with experts in a model without"
    gates_TX = ops.route(ops.linear(h_TD, weights.router), config.experts.per_token, config.experts.scale)
    y_TD = ops.experts(h_TD, gates_TX, weights.w1, weights.w2, weights.w3)
    return y_TD if weights.shared is None else ops.add(y_TD, swiglu(ops, weights.shared, h_TD))


def swiglu(ops: Ops, weights: FeedForward, h_TD: Array) -> Array:
    """w2 (silu(w1 h) * w3 h)."""
    gate_TF, up_TF = ops.linears(h_TD, (weights.w1, weights.w3))
    return ops.linear(ops.silu_mul(gate_TF, up_TF), weights.w2)
