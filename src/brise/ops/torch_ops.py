"""The ops in torch: for training (autograd) on a CPU or a CUDA device. Needs the extra `tune`.

Legend: T tokens, D width, H query heads, K key/value heads, E numbers a head, O outputs, R rows.
The residual stream is float32; norms hand `dtype` (float32 or bfloat16) to the linears.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from brise.models.batch import Batch
from brise.models.rope import Layout
from brise.models.weights import Array, Layer, Weight
from brise.ops.contract import Cache
from brise.ops.torch_attend import attend
from brise.ops.torch_weights import linear, rows_of, vector

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

    def embed(self, table: Weight, tokens: Array) -> Tensor:
        return rows_of(table, self._tensor(tokens)).float()

    def take_rows(self, x: Tensor, rows: Array) -> Tensor:
        return x[self._tensor(rows)]

    def put_rows(self, x: Tensor, features: Array | None, rows: Array | None) -> Tensor:
        if features is None or rows is None:
            return x
        index = self._tensor(rows)
        given = self._tensor(features).to(x.dtype)[index.clamp(min=0)]
        return torch.where((index >= 0)[:, None], given, x)

    def linear(self, x: Tensor, w: Weight) -> Tensor:
        return linear(x.to(self.dtype), w, self.dropout)

    def linears(self, x: Tensor, weights: Sequence[Weight]) -> tuple[Tensor, ...]:
        return tuple(self.linear(x, w) for w in weights)

    def bias(self, x: Tensor, b: Weight) -> Tensor:
        return x + vector(b).to(x.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def rms_norm(self, x: Tensor, w: Weight, eps: float) -> Tensor:
        x = x.float()
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * vector(w)).to(self.dtype)

    def heads(self, x: Tensor, num_heads: int) -> Tensor:
        return x.view(len(x), num_heads, -1)

    def flat(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1)

    def columns(self, x: Tensor, first: int, last: int) -> Tensor:
        return x[..., first:last]

    def concat(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], dim=-1)

    def rope_table(self, positions: Array, turns: Sequence[float], magnitude: float) -> Tensor:
        angles = np.outer(np.asarray(positions, np.float64), np.asarray(turns, np.float64))
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * magnitude
        return self._tensor(table.astype(np.float32))

    def rope(self, x: Tensor, table: Tensor, layout: Layout) -> Tensor:
        width = table.shape[1]
        cos, sin = table[:, None, :width // 2].to(x.dtype), table[:, None, width // 2:].to(x.dtype)
        turned, rest = x[..., :width], x[..., width:]
        if layout == "half":
            a, b = turned[..., :width // 2], turned[..., width // 2:]
            out = torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)
            return out
        a, b = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
        return torch.cat([pairs, rest], dim=-1) if rest.shape[-1] else pairs

    def scale_queries(self, x: Tensor, positions: Array, beta: float, period: int) -> Tensor:
        scales = 1.0 + beta * np.log1p((np.asarray(positions) // period).astype(np.float64))
        return x * self._tensor(scales.astype(np.float32)).to(x.dtype)[:, None, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, batch: Batch, cache: Cache | None, layer: int, scale: float,
               window: int | None) -> Tensor:
        assert cache is None, "the torch backend runs without a cache"
        return attend(q, k, v, batch, scale, window)

    def gelu(self, x: Tensor) -> Tensor:
        return functional.gelu(x)

    def silu_mul(self, gate: Tensor, up: Tensor) -> Tensor:
        return functional.silu(gate) * up

    def layer(self, body: Callable[[Tensor, Layer], Tensor], x: Tensor, layer: Layer) -> Tensor:
        return self.run_layer(body, x, layer)

    def named(self, x: Tensor, name: str) -> Tensor:
        if self.trace is not None:
            self.trace[name] = x.detach().clone()
        return x

    def _tensor(self, x: Array) -> Tensor:
        return torch.as_tensor(np.asarray(x), device=self.device)
