"""The hyper-parameters of one architecture in GGUF metadata: typed, bounded, and none overlooked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from brise.checkpoint.gguf.file import Value
from brise.errors import CheckpointError, UnsupportedError, bad_value

LARGEST = (1 << 31) - 1  # positions and sizes are int32 in a batch

# Keys that change what a model computes when they have any other value than these.
NEUTRAL: Mapping[str, tuple[bool | float | str, ...]] = MappingProxyType({
    "attention.causal": (True,),
    "attention.max_alibi_bias": (0,),
    "attention.clamp_kqv": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_shared_count": (0,),
    "nextn_predict_layers": (0,),
    "use_parallel_residual": (False,),
    "tensor_data_layout": ("Meta AI original pth",),
    "attention.temperature_scale": (0,),
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.mscale_all_dim": (0,),
    "rope.scaling.mscale": (1,),
})

# Keys that change nothing in the decoder: notes, and what other parts of brise read.
NOTES = frozenset({
    "rope.scaling.finetuned", "pooling_type", "attention.temperature_length",
    "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
    "rope.scaling.beta_fast", "rope.scaling.beta_slow"})


class GgufKeys:
    """Reads `architecture.name` keys and remembers which, so that `refuse_rest` can name the others."""

    def __init__(self, metadata: Mapping[str, Value], architecture: str) -> None:
        self._metadata, self._prefix = metadata, f"{architecture}."
        self._read: set[str] = set()

    def integer(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The value of the first of several spellings; without a default the key must be there."""
        key, value = self._find(names, default)
        if isinstance(value, np.ndarray):
            raise UnsupportedError(f"the model sets {key} for each layer, brise has one value for all")
        if isinstance(value, bool) or not isinstance(value, int):
            raise bad_value(key, value, "an integer")
        if not least <= value <= LARGEST:
            raise bad_value(key, value, f"{least} to {LARGEST}")
        return value

    def number(self, *names: str, default: float | None = None, may_be_zero: bool = False) -> float:
        """A finite positive number."""
        key, value = self._find(names, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise bad_value(key, value, "a number")
        if not (0 < value < math.inf or (may_be_zero and value == 0)):
            raise bad_value(key, value, "a finite number " + ("of at least 0" if may_be_zero else "over 0"))
        return float(value)

    def flag(self, name: str, *, default: bool) -> bool:
        key, value = self._find((name,), default)
        if not isinstance(value, bool):
            raise bad_value(key, value, "true or false")
        return value

    def text(self, name: str, *, default: str) -> str:
        key, value = self._find((name,), default)
        if not isinstance(value, str):
            raise bad_value(key, value, "a string")
        return value

    def has(self, *names: str) -> bool:
        return any(self._prefix + name in self._metadata for name in names)

    def refuse_rest(self, *also_notes: str) -> None:
        """Raises for the first key that was not read, unless it is known to change nothing."""
        for key, value in self._metadata.items():
            name = key.removeprefix(self._prefix)
            if not key.startswith(self._prefix) or name in self._read or name in NOTES:
                continue
            if name.startswith(also_notes):
                continue
            allowed = NEUTRAL.get(name, ())
            if not isinstance(value, bool | int | float | str) or value not in allowed:
                shown = value if isinstance(value, bool | int | float | str) else "a list"
                limit = f", allowed is {' or '.join(map(str, allowed))}" if allowed else ""
                raise UnsupportedError(
                    f"the model sets {key} to {shown}, which brise does not implement{limit}")

    def _find(self, names: tuple[str, ...], default: Value | None) -> tuple[str, Value]:
        self._read.update(names)
        found = {self._prefix + name: self._metadata[self._prefix + name] for name in names
                 if self._prefix + name in self._metadata}
        if not found:
            if default is None:
                raise CheckpointError(f"the key {self._prefix}{names[0]} is missing",
                                      field=self._prefix + names[0], limit="a value")
            return self._prefix + names[0], default
        (key, value), *others = found.items()
        for other, second in others:
            if isinstance(second, bool | int | float | str) and second != value:
                raise bad_value(other, second, f"{value}, as {key} says")
        return key, value
