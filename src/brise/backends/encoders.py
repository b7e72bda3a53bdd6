"""Encoders of images and audio that run op by op."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from brise.models.ops import Encode, EncoderOps
from brise.models.weights import Array


@dataclass(frozen=True)
class EagerEncoder:
    """An encoder on the ops of a backend."""

    ops: EncoderOps
    encode: Encode
    config: Any
    weights: Any

    def steps(self, source: Any) -> Iterator[Array | None]:
        """The encoder's own steps."""
        return self.encode(self.ops, self.config, self.weights, source)
