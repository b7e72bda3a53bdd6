"""AdamW (1711.05101) with its state in float32 or in 8 bits. Needs the extra `tune`.

All work is done on flat pieces of at most 262 144 numbers, so that a step needs little more memory, whatever the
parameters. Given the same parameters, gradients and number of steps, a step gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from brise.errors import CheckpointError
from brise.tune.adamw_state import Bits, OptimizerState, new_state

Tensor = torch.Tensor

_PIECE = 1 << 18  # numbers; a multiple of a block of 8-bit state


class AdamW:
    """Updates the named parameters in place; they are float32 and contiguous. `seed` is for rounding 8-bit state.

    `home` is where the state lies between steps (default: beside its parameter); the numbers do not depend on it.
    """

    def __init__(self, parameters: Mapping[str, Tensor], *, betas: tuple[float, float] = (0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0, bits: Bits = 32, seed: int = 0,
                 home: torch.device | None = None) -> None:
        for name, parameter in parameters.items():
            assert parameter.dtype == torch.float32 and parameter.is_contiguous(), name
        self._parameters, self._betas, self._eps, self._decay = dict(parameters), betas, eps, weight_decay
        self._states = {name: new_state(parameter, bits, parameter.device if home is None else home)
                        for name, parameter in parameters.items()}
        self._seed = seed
        self.num_steps = 0

    @property
    def state_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def zero_grad(self) -> None:
        """Drops the gradients and frees their memory."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def step(self, rate: float) -> None:
        """Takes one step; the gradients are finite."""
        self.num_steps += 1
        generator = torch.Generator().manual_seed(_mixed(self._seed, self.num_steps))
        for group in self._groups():
            self._update(group, rate, generator)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer state by name, for a checkpoint; references, not copies."""
        return {f"{name}.{kind}": tensor for name, state in self._states.items()
                for kind, tensor in state.tensors().items()}

    def load(self, tensors: Mapping[str, Tensor], num_steps: int) -> None:
        """Restores what `tensors` gave after so many steps; CheckpointError if they are another optimiser's."""
        own = self.tensors()
        if own.keys() != tensors.keys():
            name = min(own.keys() ^ tensors.keys())
            raise CheckpointError(f"the optimiser's {name!r} is {'missing' if name in own else 'not known'}",
                                  field=name, hint="it was written with other settings")
        for name, tensor in own.items():
            given = tensors[name]
            if given.shape != tensor.shape or given.dtype != tensor.dtype:
                raise CheckpointError(f"the optimiser's {name!r} is {given.dtype} {tuple(given.shape)}, allowed is "
                                      f"{tensor.dtype} {tuple(tensor.shape)}", field=name)
            tensor.copy_(given)
        self.num_steps = num_steps

    def _groups(self) -> Iterator[list[_Piece]]:
        """Pieces of the parameters that have gradients, together up to `_PIECE` numbers."""
        group: list[_Piece] = []
        size = 0
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            flat, grad = parameter.detach().view(-1), parameter.grad.reshape(-1)
            for first in range(0, len(flat), _PIECE):
                piece = _Piece(flat[first:first + _PIECE], grad[first:first + _PIECE], self._states[name], first)
                if size and size + len(piece.numbers) > _PIECE:
                    yield group
                    group, size = [], 0
                group.append(piece)
                size += len(piece.numbers)
        if group:
            yield group

    def _update(self, group: Sequence[_Piece], rate: float, generator: torch.Generator) -> None:
        beta1, beta2 = self._betas
        numbers, grads = [piece.numbers for piece in group], [piece.grad for piece in group]
        read = [piece.state.read(piece.first, len(piece.numbers)) for piece in group]
        means, squares = [mean for mean, _ in read], [square for _, square in read]
        if self._decay:
            torch._foreach_mul_(numbers, 1.0 - rate * self._decay)
        torch._foreach_lerp_(means, grads, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1.0 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_div_(divisors, math.sqrt(1.0 - beta2 ** self.num_steps))
        torch._foreach_add_(divisors, self._eps)
        torch._foreach_addcdiv_(numbers, means, divisors, -rate / (1.0 - beta1 ** self.num_steps))
        for piece, mean, square in zip(group, means, squares, strict=True):
            piece.state.write(piece.first, mean, square, generator)


@dataclass(frozen=True)
class _Piece:
    """A flat part of a parameter, from its number `first` on."""

    numbers: Tensor
    grad: Tensor
    state: OptimizerState
    first: int


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scales all gradients down so that their norm is at most `max_norm` (0: leaves them); gives the norm before that.

    If the norm is not finite, they stay as they are, and the caller must not take the step. It is the Euclidean norm of
    all numbers, computed in float32 within a gradient and in float64 across gradients.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:
        return 0.0
    norm = math.sqrt(math.fsum(float(norm) ** 2 for norm in torch._foreach_norm(grads)))
    if math.isfinite(norm) and 0 < max_norm < norm:
        torch._foreach_mul_(grads, max_norm / norm)
    return norm


def _mixed(seed: int, step: int) -> int:
    """A seed of its own for every step (the mixing of splitmix64)."""
    value = (seed * 0x9E3779B97F4A7C15 + step * 0xD1B54A32D192ED03) & (1 << 64) - 1
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & (1 << 64) - 1
    value = (value ^ value >> 27) * 0x94D049BB133111EB & (1 << 64) - 1
    return (value ^ value >> 31) >> 1
