"""How to train: everything that decides the weights that come out, besides the data and the base."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from brise.errors import UnsupportedError
from brise.models.lora import ENDS, MODULES, NAMES, module_of

Method = Literal["lora", "dora", "full"]
Direction = Literal["forward", "reverse"]  # of a divergence: KL(teacher || student), or KL(student || teacher)


@dataclass(frozen=True)
class Recipe:
    """The defaults train an adapter of rank 16 on all matrices of the decoder.

    A step takes `batch_size` examples. Its loss is the mean over all their learned tokens, however they are cut into
    microbatches; so memory decides how fast a run is, but not what comes out, up to rounding.
    """

    method: Method = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = tuple(MODULES)
    learning_rate: float = 1e-3
    min_learning_rate: float = 0.0  # where the schedule ends, as a share of learning_rate
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03  # share of all steps
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0  # norm of all gradients; 0: none
    optimizer: Literal["adamw", "adamw8"] = "adamw"
    batch_size: int = 32
    epochs: float = 3.0
    steps: int | None = None  # in place of epochs
    seed: int = 0
    eval_every: int = 0  # steps; 0: once an epoch
    patience: int = 0  # evaluations without progress before it stops; 0: never
    distill_weight: float = 1.0  # of the teacher's predictions, where rows have them; the rest is cross entropy
    distill_temperature: float = 1.0
    distill_direction: Direction = "forward"  # reverse: for answers of the student's own

    def __post_init__(self) -> None:
        for name in self.targets:
            if name not in NAMES:
                raise UnsupportedError(f"the target module is {name!r}, allowed are {', '.join(NAMES)}")
            if name in ENDS and self.method == "dora":
                raise UnsupportedError(f"the target module is {name!r}, with DoRA allowed are {', '.join(MODULES)}")
        _check("rank", self.rank, 1, 1024)
        _check("alpha", self.alpha, 1e-3, 1e5)
        _check("dropout", self.dropout, 0.0, 0.95)
        _check("learning rate", self.learning_rate, 0.0, 10.0)
        _check("warm-up", self.warmup, 0.0, 1.0)
        _check("batch size", self.batch_size, 1, 1 << 16)
        _check("distillation weight", self.distill_weight, 0.0, 1.0)
        _check("distillation temperature", self.distill_temperature, 1e-2, 100.0)
        if self.steps is None:
            _check("epochs", self.epochs, 1e-6, 1e4)
        else:
            _check("steps", self.steps, 1, 1 << 31)

    def num_steps(self, num_rows: int) -> int:
        """Of a whole run over so many rows."""
        return self.steps or max(1, math.ceil(self.epochs * self.steps_an_epoch(num_rows)))

    def steps_an_epoch(self, num_rows: int) -> int:
        return -(-num_rows // self.batch_size)

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank

    def takes(self, path: str) -> bool:
        """Whether the matrix at this path (layers.3.attention.wq, output) is a target."""
        words = path.split(".", 2)
        is_matrix = path in ENDS.values() or (words[0] == "layers" and words[-1] in MODULES.values())
        return is_matrix and module_of(path) in self.targets


def _check(name: str, value: float, lowest: float, highest: float) -> None:
    if not lowest <= value <= highest:
        raise UnsupportedError(f"the {name} is {value:g}, allowed is {lowest:g} to {highest:g}")
