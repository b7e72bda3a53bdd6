"""Linears of the torch backend: frozen matrices, plain or in blocks, and the low-rank adapters that are trained.

Legend: T tokens, O outputs, R the ranks of all adapters of a call.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, TypeVar

import torch
from torch.autograd.function import once_differentiable

from brise.backends.torch.weights import Handle, handle_of, is_whole_on, numbers_of, parts_of
from brise.models.weights import Lora, LowRank, Weight

T = TypeVar("T")
Tensor = torch.Tensor
Dropout = Callable[[Tensor], Tensor]

# Squared norms of the rows of frozen matrices, by id. The matrix is kept, too, because ids of dead objects are reused.
RowNormCache = MutableMapping[int, tuple[Handle, Tensor]]


def linears(x: Tensor, weights: Sequence[Weight], dropout: Dropout | None,
            row_norms: RowNormCache) -> tuple[Tensor, ...]:
    """x W^T of each weight plus the product of its first adapter. `row_norms` keeps what DoRA needs of frozen matrices.

    DoRA's results are float32 at least: a gain near 1 would be lost in rounding to bfloat16.
    """
    if dropout is not None and len(weights) > 1 and any(only_adapter(w) is not None for w in weights):
        return tuple(linears(x, (w,), dropout, row_norms)[0] for w in weights)  # each adapter has its own dropout
    handles = [handle_of(w.base if isinstance(w, Lora) else w) for w in weights]
    adapters = [only_adapter(w) for w in weights]
    if all(adapter is None and is_whole_on(handle, x.device)
           for handle, adapter in zip(handles, adapters, strict=True)):
        return tuple(x @ handle.to(x.dtype).t() for handle in handles if isinstance(handle, Tensor))
    low_ranks = [adapter for adapter in adapters if adapter is not None]
    z = dropout(x) if dropout is not None and low_ranks else x
    scales = [None if adapter is None else adapter.scale for adapter in adapters]
    ys = _Linears.apply(x, z, handles, scales, *(side for low in low_ranks for side in (low.a,
                                                                                        low.b)))  # type: ignore[no-untyped-call]
    return tuple(y if adapter is None or adapter.magnitude is None else y * _gain(handle, adapter, x.dtype, row_norms)
                 for y, handle, adapter in zip(ys, handles, adapters, strict=True))


def only_adapter(weight: Weight) -> LowRank | None:
    """The adapter of a weight that all tokens go through; None where it has none."""
    if not isinstance(weight, Lora):
        return None
    assert weight.tokens is None, "adapters of single tokens are for serving"
    return weight.adapters[0]


class _Linears(torch.autograd.Function):
    """Several matrices on one x. Saves the adapters' input and its product with A; matrices stay as they are placed.

    `scales` is None for a matrix without an adapter; `sides` are the A and B of the others. z is x, or x with dropout.

    An adapter's product is computed first and the large product is added to it: a sum in float32 that is rounded once.
    If it were added to a product in bfloat16, everything under half of the last digit would be lost: in the first
    steps, when every B is small, that is most of what adapters do.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor, handles: list[Handle], scales: list[float | None],
                *sides: Tensor) -> tuple[Tensor, ...]:
        u_TR = z @ _stacked(sides, x.dtype).t() if sides else z.new_empty(len(z), 0)
        added: list[Tensor | None] = [None] * len(handles)
        for index, b, scale, own in _adapted(range(len(handles)), scales, sides):
            added[index] = u_TR[:, own] @ (b * scale).to(x.dtype).t()
        ys = [_product(x, handle, part) for handle, part in zip(handles, added, strict=True)]
        ctx.save_for_backward(z, u_TR, *sides)
        ctx.handles, ctx.scales, ctx.is_same = handles, scales, z is x
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, u_TR, *sides = ctx.saved_tensors
        d_u_TR, d_bs = torch.empty_like(u_TR), []
        for grad, b, scale, own in _adapted(grads, ctx.scales, sides):
            d_u_TR[:, own] = grad @ (b * scale).to(grad.dtype)
            d_bs.append((grad.t() @ u_TR[:, own]).to(b.dtype).mul_(scale))
        d_as = (d_u_TR.t() @ z).split([b.shape[1] for b in sides[1::2]]) if sides else ()
        d_sides = [side for a, d_a, d_b in zip(sides[::2], d_as, d_bs, strict=True) for side in (d_a.to(a.dtype), d_b)]
        d_x = d_z = None
        if ctx.needs_input_grad[0]:
            d_x = _back(grads, ctx.handles, d_u_TR @ _stacked(sides, d_u_TR.dtype) if ctx.is_same and sides else None)
        if ctx.needs_input_grad[1] and not ctx.is_same:
            d_z = d_u_TR @ _stacked(sides, d_u_TR.dtype)
        return d_x, d_z, None, None, *d_sides


def _stacked(sides: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The A of all adapters, stacked."""
    return torch.cat([a.to(dtype) for a in sides[::2]]) if len(sides) > 2 else sides[0].to(dtype)


def _adapted(values: Sequence[T], scales: Sequence[float | None],
             sides: Sequence[Tensor]) -> list[tuple[T, Tensor, float, slice]]:
    """For every matrix with an adapter: its value, B, scale, and columns of R."""
    adapted, first, index = [], 0, 1
    for value, scale in zip(values, scales, strict=True):
        if scale is None:
            continue
        b = sides[index]
        adapted.append((value, b, scale, slice(first, first + b.shape[1])))
        first, index = first + b.shape[1], index + 2
    return adapted


def _product(x: Tensor, handle: Handle, added: Tensor | None) -> Tensor:
    """x W^T, added in place to `added` if there is an adapter's product."""
    if is_whole_on(handle, x.device):
        assert isinstance(handle, Tensor)
        w = handle.to(x.dtype).t()
        return x @ w if added is None else added.addmm_(x, w)
    y = x.new_empty(len(x), len(handle) if isinstance(handle, Tensor) else len(handle.data)) if added is None else added
    for rows, part in parts_of(handle, x.dtype, x.device):
        if added is None:
            torch.mm(x, part.t(), out=y[:, rows])
        else:
            y[:, rows].addmm_(x, part.t())
    return y


def _back(grads: Sequence[Tensor], handles: Sequence[Handle], total: Tensor | None) -> Tensor:
    """The sum of grad W, added in place to `total`."""
    for grad, handle in zip(grads, handles, strict=True):
        for rows, part in parts_of(handle, grad.dtype, grad.device):
            total = grad[:, rows] @ part if total is None else total.addmm_(grad[:, rows], part)
    assert total is not None
    return total


def _gain(handle: Handle, adapter: LowRank, dtype: torch.dtype, row_norms: RowNormCache) -> Tensor:
    """magnitude / |rows of W + scale B A|; the norm is a constant for the gradient (2402.09353, section 4.3)."""
    with torch.no_grad():
        a, b = adapter.a.detach(), adapter.b.detach() * adapter.scale
        whole = numbers_of(handle, dtype, a.device)
        if id(handle) not in row_norms:
            row_norms[id(handle)] = handle, torch.linalg.vecdot(whole.to(a.dtype), whole.to(a.dtype))
        cross = (whole @ a.to(dtype).t()).to(a.dtype)
        norm = torch.sqrt(row_norms[id(handle)][1] + 2 * (cross * b).sum(1) + ((b @ (a @ a.t())) * b).sum(1))
    magnitude: Tensor = adapter.magnitude  # type: ignore[assignment]
    return magnitude / norm
