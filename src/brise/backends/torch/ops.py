"""The ops in torch: for training (autograd) on a CPU or a CUDA device. Needs the extra `tune`.

Legend: T tokens, D width, H query heads, K key/value heads, E numbers a head, O outputs, R rows, X experts.
The residual stream is float32; norms hand `dtype` (float32 or bfloat16) to the linears. With float64, all is float64:
that is how gradients are checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from brise.backends.torch import functions
from brise.backends.torch.attend import attend
from brise.backends.torch.functions import silu_mul
from brise.backends.torch.linear import RowNormCache, linears, only_adapter
from brise.backends.torch.weights import Handle, rows_of, stack_of, tensor_of
from brise.models.batch import Batch
from brise.models.ops import Cache
from brise.models.rope import Layout
from brise.models.weights import Array, Layer, Lora, Placed, Weight

Tensor = torch.Tensor
LayerRunner = Callable[[Callable[[Tensor, Layer], Tensor], Tensor, Layer], Tensor]


def _plain(body: Callable[[Tensor, Layer], Tensor], x: Tensor, layer: Layer) -> Tensor:
    return body(x, layer)


@dataclass(frozen=True)
class TorchOps:
    """The ops contract on tensors. `run_layer` may checkpoint (tune) or fetch weights (more machines)."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    run_layer: LayerRunner = _plain
    dropout: Callable[[Tensor], Tensor] | None = None  # of the input of adapters, while training
    trace: dict[str, Tensor] | None = field(default=None)
    guide: Mapping[str, Tensor] | None = None  # values to go on from in place of the own, by name
    row_norms: RowNormCache = field(default_factory=dict)  # what DoRA needs of frozen matrices; may outlive the ops
    is_recorded = False

    @property
    def wide(self) -> torch.dtype:
        """What sums, norms and the residual stream are kept in."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def embed(self, table: Weight, tokens: Array) -> Tensor:
        if not isinstance(table, Lora):
            return rows_of(table, tokens, self.wide, self.device)
        adapter = only_adapter(table)
        rows = rows_of(table.base, tokens, self.wide, self.device)
        if adapter is None:
            return rows
        own: Tensor = adapter.scale * (adapter.b[self._tensor(tokens)] @ adapter.a).to(self.wide)
        return rows + own

    def take_rows(self, x: Tensor, rows: Array) -> Tensor:
        return x[self._tensor(rows)]

    def put_rows(self, x: Tensor, features: Array | None, rows: Array | None) -> Tensor:
        if features is None or rows is None:
            return x
        index = self._tensor(rows)
        given = torch.as_tensor(features, dtype=x.dtype, device=self.device)[index.clamp(min=0)]
        return torch.where((index >= 0)[:, None], given, x)

    def linear(self, x: Tensor, w: Weight) -> Tensor:
        return self.linears(x, (w,))[0]

    def linears(self, x: Tensor, weights: Sequence[Weight]) -> tuple[Tensor, ...]:
        return linears(x.to(self.dtype), weights, self.dropout, self.row_norms)

    def bias(self, x: Tensor, b: Weight) -> Tensor:
        return x + tensor_of(b).to(x.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * float(np.float32(factor))

    def rms_norm(self, x: Tensor, w: Weight, eps: float) -> Tensor:
        return functions.rms_norm(x, tensor_of(w), eps, self.dtype)

    def layer_norm(self, x: Tensor, w: Weight, b: Weight, eps: float) -> Tensor:
        wide = functions.widened(x)
        return functional.layer_norm(wide, wide.shape[-1:], tensor_of(w).to(wide.dtype), tensor_of(b).to(wide.dtype),
                                     eps).to(self.dtype)

    def heads(self, x: Tensor, num_heads: int) -> Tensor:
        return x.reshape(len(x), num_heads, x.shape[1] // num_heads)

    def flat(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), x.shape[1] * x.shape[2])

    def columns(self, x: Tensor, first: int, last: int) -> Tensor:
        return x[..., first:last]

    def concat(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=-1)

    def heads_linear(self, x: Tensor, w: Weight) -> Tensor:
        return heads_linear(x.to(self.dtype), w)

    def rope_table(self, positions: Array, inv_freq: Sequence[float], attention_factor: float) -> Tensor:
        angles = np.outer(np.asarray(positions, np.float64), np.asarray(inv_freq, np.float64))
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * attention_factor
        return self._tensor(table).to(self.wide)

    def rope(self, x: Tensor, table: Tensor, layout: Layout) -> Tensor:
        return functions.rotate(x, table, layout)

    def scale_queries(self, x: Tensor, positions: Array, beta: float, period: int) -> Tensor:
        scales = 1.0 + beta * np.log1p((np.asarray(positions) // period).astype(np.float64))
        return (x * self._tensor(scales).to(self.wide)[:, None, None]).to(x.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Tensor:
        assert cache is None, "the torch backend runs without a cache"
        return attend(q, k, v, batch, scale, window)

    def attend_latent(self, q: Tensor, kv: Tensor, batch: Batch, cache: Cache | None, layer: int, scale: float,
                      rank: int) -> Tensor:
        assert cache is None, "the torch backend runs without a cache"
        return self.heads(attend(q, kv, kv[..., :rank], batch, scale, None), q.shape[1])

    def route(self, logits: Tensor, per_token: int, scale: float) -> Tensor:
        return route(functions.widened(logits), per_token, scale)

    def experts(self, x: Tensor, gates: Tensor, w1: Weight, w2: Weight, w3: Weight) -> Tensor:
        return experts(x.to(self.dtype), gates, w1, w2, w3)

    def gelu(self, x: Tensor) -> Tensor:
        return functional.gelu(x)

    def gelu_tanh(self, x: Tensor) -> Tensor:
        return functional.gelu(x, approximate="tanh")

    def gelu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return functions.gelu_mul(gate, up)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return functions.silu_mul(gate, up)

    def rope_table_2d(self, rows: Array, columns: Array, inv_freq: Sequence[float]) -> Tensor:
        inv_freq_E = np.asarray(inv_freq, np.float64)
        angles = np.concatenate([np.outer(rows, inv_freq_E[::2]), np.outer(columns, inv_freq_E[1::2])], axis=1)
        return self._tensor(np.concatenate([np.cos(angles), np.sin(angles)], axis=1)).to(self.wide)

    def slice_heads(self, x: Tensor, first: int, last: int) -> Tensor:
        return x[:, first:last]

    def join_heads(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), 1)

    def slice_rows(self, x: Tensor, first: int, last: int) -> Tensor:
        return x[first:last]

    def join_rows(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def merge_patches(self, x: Tensor, grids: Sequence[tuple[int, int]], merge: int) -> Tensor:
        parts = torch.split(x, [rows * columns for rows, columns in grids])
        return torch.cat([
            part.reshape(rows // merge, merge, columns // merge, merge, -1).permute(0, 2, 4, 1, 3).reshape(
                -1, x.shape[1] * merge**2)
            for part, (rows, columns) in zip(parts, grids, strict=True)])

    def mean_patches(self, x: Tensor, grids: Sequence[tuple[int, int]], size: int) -> Tensor:
        return self.merge_patches(x, grids, size).reshape(-1, x.shape[1], size**2).mean(dim=2)

    def stack_rows(self, x: Tensor, count: int) -> Tensor:
        return x.reshape(len(x) // count, count * x.shape[1])

    def windows(self, x: Tensor, size: int, stride: int) -> Tensor:
        padded = functional.pad(x, (0, 0, size // 2, size // 2))
        return padded.unfold(0, size, stride).flatten(1)

    def layer(self, body: Callable[[Tensor, Layer], Tensor], x: Tensor, layer: Layer) -> Tensor:
        return self.run_layer(body, x, layer)

    def named(self, x: Tensor, name: str) -> Tensor:
        if self.trace is not None:
            self.trace[name] = x.detach().clone()
        return x if self.guide is None else self.guide[name]

    def _tensor(self, x: Array) -> Tensor:
        return torch.as_tensor(np.asarray(x), device=self.device)


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
