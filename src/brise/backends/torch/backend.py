"""The torch backend places weights for training. It runs whole sequences and has no cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from brise.backends.torch.ops import TorchOps
from brise.backends.torch.weights import Keep, place
from brise.models.weights import Weight


@dataclass(frozen=True)
class TorchBackend:
    """Runs models for training. `keep` "packed" keeps block formats as they are and dequantizes them in every step."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    keep: Keep = "dense"

    @property
    def name(self) -> str:
        return "torch"

    def place(self, name: str, weight: Weight) -> Weight:
        """The weight as tensors; one that this backend cannot run is refused by name."""
        return place(name, weight, self.device, self.dtype, self.keep)

    def ops(self) -> TorchOps:
        """The ops on weights that this backend placed."""
        return TorchOps(self.device, self.dtype)
