"""Losses over the output head, a few rows at a time: the logits of a whole batch are never in memory at once.

Legend: R rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from brise.backends.torch.weights import handle_of, numbers_of
from brise.models.weights import Weight

LOGITS = 1 << 23  # numbers of logits at a time: 32 MB in float32
TILE = 32  # their rows come in whole tiles: see packing.TILE

Tensor = torch.Tensor


def cross_entropy(hidden_RD: Tensor, head: Weight, targets_R: Tensor) -> Tensor:
    """Sum over rows of -log softmax(head hidden)[target], in float32. The head may be trainable."""
    handle = handle_of(head)
    head_VD = handle if isinstance(handle, Tensor) else numbers_of(handle, hidden_RD.dtype)
    loss: Tensor = _CrossEntropy.apply(hidden_RD, head_VD, targets_R)  # type: ignore[no-untyped-call]
    return loss


def in_pieces(hidden_RD: Tensor, vocab_size: int, num_arrays: int = 1) -> tuple[Tensor, list[slice]]:
    """The rows, padded to whole tiles, and slices of them, small enough for `num_arrays` arrays of logits at a time.

    The last slice reaches past the end of arrays that belong to the given rows, such as their targets."""
    step = max(1, LOGITS // num_arrays // vocab_size)
    if step > TILE:
        step -= step % TILE
        hidden_RD = functional.pad(hidden_RD, (0, 0, 0, -len(hidden_RD) % TILE))
    return hidden_RD, [slice(first, first + step) for first in range(0, len(hidden_RD), step)]


class _CrossEntropy(torch.autograd.Function):
    """Computes the gradient with respect to hidden states in the forward pass, while the logits are in memory.

    Two arrays serve all pieces, and every step over them works in place: at this size fresh memory costs more than the
    computation.
    """

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, head_VD: Tensor, targets_R: Tensor) -> Tensor:
        wants_hidden, wants_head, _ = ctx.needs_input_grad
        precision = torch.promote_types(hidden_RD.dtype, torch.float32)
        loss = torch.zeros((), dtype=precision, device=hidden_RD.device)
        num_rows = len(hidden_RD)
        hidden_RD, pieces = in_pieces(hidden_RD, len(head_VD))
        grad_RD = torch.empty_like(hidden_RD) if wants_hidden else None
        grad_VD = torch.zeros_like(head_VD) if wants_head else None
        compute_VD = head_VD.to(hidden_RD.dtype)
        products = hidden_RD.new_empty(max((len(hidden_RD[rows]) for rows in pieces), default=0), len(head_VD))
        numbers = products if products.dtype == precision else products.new_empty(products.shape, dtype=precision)
        for rows in pieces:
            own_RD, places = hidden_RD[rows], targets_R[rows, None]
            products_RV, z_RV = products[:len(own_RD)], numbers[:len(own_RD)]
            torch.mm(own_RD, compute_VD.t(), out=products_RV)
            if numbers is not products:
                z_RV.copy_(products_RV)
            loss += _softmax_(z_RV[:len(places)], places)
            if grad_RD is None and grad_VD is None:
                continue
            z_RV[:len(places)].scatter_add_(1, places, torch.full_like(places, -1, dtype=precision))
            z_RV[len(places):] = 0  # the padding of the tile
            slope_RV = z_RV if numbers is products else products_RV.copy_(z_RV)
            if grad_RD is not None:
                torch.mm(slope_RV, compute_VD, out=grad_RD[rows])
            if grad_VD is not None:
                grad_VD += (slope_RV.t() @ own_RD).to(grad_VD.dtype)
        grad_RD = None if grad_RD is None else grad_RD[:num_rows]
        ctx.save_for_backward(grad_RD, grad_VD)
        return loss

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_RD, grad_VD = ctx.saved_tensors
        return (None if grad_RD is None else grad_RD * slope.to(grad_RD.dtype),
                None if grad_VD is None else grad_VD * slope.to(grad_VD.dtype), None)


def _softmax_(z_RV: Tensor, places: Tensor) -> Tensor:
    """Turns logits into probabilities in place, and gives the sum over rows of -log p[place]."""
    z_RV -= z_RV.amax(1, keepdim=True)
    picked = z_RV.gather(1, places)
    sums = z_RV.exp_().sum(1, keepdim=True)
    z_RV /= sums
    return (sums.log() - picked).sum()
