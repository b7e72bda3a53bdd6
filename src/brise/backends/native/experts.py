"""Stacks of experts in the native backend: all in memory, or packed from the file when a token needs one."""

from __future__ import annotations

from collections.abc import Callable

from brise import _native
from brise.errors import UnsupportedError
from brise.models.weights import Dense, Placed, Quant, Stack, Stored, Weight


def place_loaded(name: str, stack: Stack, store: _native.ExpertStore,
                 pack: Callable[[str, Dense | Quant | Stored], _native.Weight]) -> Placed:
    """The stack without its matrices: `pack` makes one when a token needs it, and `store` keeps it.

    `pack` runs in the thread of the step, between two runs of the thread pool; an error that it raises ends the step.
    """
    first = stack.matrices[0]
    for index, matrix in enumerate(stack.matrices):
        if (matrix.format, matrix.shape) != (first.format, first.shape):
            raise UnsupportedError(f"{name}.{index} is {matrix.format} {matrix.shape}, allowed is {first.format} "
                                   f"{first.shape} as for the other experts of the layer")
    rows, cols = first.shape
    try:
        handle = _native.Stack(store, len(stack.matrices), first.format, rows, cols,
                               lambda index: pack(f"{name}.{index}", stack.matrices[index]))
    except ValueError as error:
        raise UnsupportedError(f"{name}: {error}") from None
    return Placed(stack.shape, handle)


def expert_stack(weight: Weight) -> _native.Stack:
    """The stack for the `experts` op, from a placed stack of either kind."""
    if not isinstance(weight, Placed):
        raise UnsupportedError(f"a {type(weight).__name__} weight was not placed in the native backend")
    match weight.handle:
        case _native.Stack():
            stack: _native.Stack = weight.handle
            return stack
        case tuple() as matrices:
            return _native.Stack(list(matrices))
    raise UnsupportedError(f"a weight of shape {weight.shape} is no stack of experts")
