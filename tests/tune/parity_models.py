"""A tiny model with an adapter: torch as the trainer has it, and the reference ops in place of a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from brise.backends.native.backend import NativeBackend
from brise.backends.reference.ops import ReferenceBackend, ReferenceOps
from brise.backends.torch import weights as torch_weights
from brise.checkpoint.open import open_checkpoint
from brise.data.example import EncodedRow, TrainingExample
from brise.data.render import rows_of
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.lora import MODULES, adapted, targets
from brise.models.weights import Array, LowRank, Weights, place
from brise.text.load import Tokens, tokens_for
from brise.tune.parity.parity import ParityPair
from brise.tune.parity.replay import TorchSide
from brise.tune.parity.served import NativeSide, ParitySide

from ..checkpoint.make_gguf import write_tiny

CPU = torch.device("cpu")
TOPICS = ("rain", "tea", "the sea", "an old king", "trains", "war and peace", "stars", "a thin line")


@dataclass(frozen=True)
class ReferenceSide:
    """A model on the reference ops."""

    config: Config
    weights: Weights

    def hidden(self, batch: Batch) -> Array:
        return decoder.hidden(ReferenceOps(), self.config, self.weights, batch)

    def logits(self, hidden_RD: Array) -> Array:
        return ReferenceOps().linear(hidden_RD, self.weights.output)

    def trace(self, batch: Batch) -> dict[str, Array]:
        found: dict[str, Array] = {}
        decoder.forward(ReferenceOps(found), self.config, self.weights, batch)
        return found


@dataclass(frozen=True)
class Tiny:
    """A tiny model from a file, its tokens, and conversations about nothing."""

    path: Path
    config: Config
    stored: Weights
    tokens: Tokens
    examples: tuple[TrainingExample, ...]
    rows: tuple[EncodedRow, ...]

    def adapter(self, seed: int = 0, size: float = 0.2, rank: int = 4,
                modules: tuple[str, ...] = tuple(MODULES)) -> dict[str, LowRank]:
        """A random adapter; `size` is about what it adds, as a share of the matrix."""
        random = np.random.default_rng(seed)
        found = {}
        for path, (rows, cols) in targets(self.config, modules).items():
            a = random.normal(0, cols**-0.5, (rank, cols)).astype(np.float32)
            found[path] = LowRank(a, random.normal(0, size, (rows, rank)).astype(np.float32), 2.0)
        return found

    def trained(self, adapter: Mapping[str, LowRank] | None = None) -> TorchSide:
        """As the trainer has it, in float32."""
        weights = place(self.stored, lambda name, weight: torch_weights.place(name, weight, CPU, torch.float32))
        return TorchSide(self.config, weights if adapter is None else adapted(weights, {
            path: replace(own, a=torch.from_numpy(own.a), b=torch.from_numpy(own.b))
            for path, own in adapter.items()}))

    def reference(self, adapter: Mapping[str, LowRank] | None = None) -> ReferenceSide:
        """On the reference ops."""
        weights = place(self.stored, ReferenceBackend().place)
        return ReferenceSide(self.config, weights if adapter is None else adapted(weights, adapter))

    def native(self) -> NativeSide:
        """The base as the engine runs it."""
        backend = NativeBackend(1)
        return NativeSide.of(backend, self.config, place(self.stored, backend.place))

    def pair(self, trained: Mapping[str, LowRank] | None = None,
             served: Mapping[str, LowRank] | None = None) -> ParityPair:
        """Trainer and reference."""
        return ParityPair(self.trained(trained), self.reference(served))

    def base(self, served: ParitySide | None = None) -> ParityPair:
        """Both sides without an adapter."""
        return ParityPair(self.trained(), served or self.reference())


def tiny(folder: Path, family: str = "llama", format: str = "F32", seed: int = 0) -> Tiny:
    """A tiny random model and eight conversations."""
    path = write_tiny(folder / f"{family}-{format}.gguf", family, format=format, seed=seed)
    checkpoint = open_checkpoint(path)
    tokens = tokens_for(checkpoint)
    examples = tuple(conversation(number, topic) for number, topic in enumerate(TOPICS))
    rows = tuple(row for example in examples for row in rows_of(example, tokens))
    return Tiny(path, checkpoint.config, checkpoint.weights(), tokens, examples, rows)


def conversation(number: int, topic: str) -> TrainingExample:
    """A short one."""
    return TrainingExample(({"role": "system", "content": "Be brief."}, {"role": "user",
                                                                         "content": f"Say a word on {topic}."},
                            {"role": "assistant",
                             "content": f"There is {topic} in the air."}), f"data.jsonl:{number + 1}",
                           str(number))
