"""The model as the trainer runs it, for parity. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from brise.backends.torch.ops import TorchOps
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.weights import Array, Weights

Tensor = torch.Tensor


@dataclass(frozen=True)
class TorchSide:
    """Placed weights with adapters as they were trained; `ops` without dropout."""

    config: Config
    weights: Weights
    ops: TorchOps = TorchOps()

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Array:
        """See sides.Side."""
        return _array(decoder.hidden(self.ops, self.config, self.weights, batch))

    @torch.no_grad()
    def logits(self, hidden_RD: Array) -> Array:
        """See sides.Side."""
        return _array(self.ops.linear(torch.from_numpy(hidden_RD).to(self.ops.device), self.weights.output))

    def trace(self, batch: Batch) -> dict[str, Array]:
        """See sides.Side."""
        return self._trace(self.ops, batch)

    def guided_trace(self, batch: Batch, guide: Mapping[str, Array]) -> dict[str, Array]:
        """See sides.GuidedSide."""
        values = {name: torch.from_numpy(value).to(self.ops.device) for name, value in guide.items()}
        return self._trace(replace(self.ops, guide=values), batch)

    @torch.no_grad()
    def _trace(self, ops: TorchOps, batch: Batch) -> dict[str, Array]:
        found: dict[str, Tensor] = {}
        decoder.forward(replace(ops, trace=found), self.config, self.weights, batch)
        return {name: _array(value) for name, value in found.items()}


def _array(x: Tensor) -> Array:
    return x.detach().float().cpu().numpy()
