"""Losses over the output head, in pieces: the logits of a whole batch are never in memory at once.

A head that lies in memory as plain numbers is taken whole, for a few rows at a time. One in blocks, or on the host of a
GPU, is taken a few thousand rows of the vocabulary at a time, for all hidden states, and twice: the first pass adds up
the softmax's sum, the second makes the gradient.

Legend: R rows, D width, V vocabulary, L the rank of the head's adapter. With an adapter the hidden states have D + L
columns, the last of them scale * A hidden, so that logits are hidden[:, :D] W^T + hidden[:, D:] B^T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from brise.backends.torch.linear import only_adapter
from brise.backends.torch.weights import Handle, handle_of, is_whole_on, numbers_of, parts_of
from brise.models.weights import Lora, Weight

LOGITS = 1 << 23  # numbers of logits at a time: 32 MB in float32
TILE = 32  # their rows come in whole tiles: see packing.TILE

Tensor = torch.Tensor
Dropout = Callable[[Tensor], Tensor]


def cross_entropy(hidden_RD: Tensor, head: Weight, targets_R: Tensor, dropout: Dropout | None = None) -> Tensor:
    """Sum over rows of -log softmax(head hidden)[target], in float32. The head may be trainable, or have an adapter,
    whose input goes through `dropout`."""
    handle = handle_of(head.base if isinstance(head, Lora) else head)
    given, low_VL = _with_adapter(hidden_RD, head, dropout)
    kind = _CrossEntropy if is_whole_on(handle, hidden_RD.device) else _PartwiseCrossEntropy
    loss: Tensor = kind.apply(given, handle, low_VL, targets_R)  # type: ignore[no-untyped-call]
    return loss


def with_head(hidden_RD: Tensor, head: Weight, dropout: Dropout | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Hidden states (R, D) or (R, D + L), the whole head (V, D), and B (V, L) of its adapter."""
    handle = handle_of(head.base if isinstance(head, Lora) else head)
    head_VD = (handle if isinstance(handle, Tensor) and is_whole_on(handle, hidden_RD.device)
               else numbers_of(handle, hidden_RD.dtype, hidden_RD.device))
    given, low_VL = _with_adapter(hidden_RD, head, dropout)
    return given, head_VD, low_VL


def _with_adapter(hidden_RD: Tensor, head: Weight, dropout: Dropout | None) -> tuple[Tensor, Tensor | None]:
    adapter = only_adapter(head)
    if adapter is None:
        return hidden_RD, None
    assert adapter.magnitude is None, "a head with a magnitude is not trained"
    given_RD = hidden_RD if dropout is None else dropout(hidden_RD)
    low_RL = given_RD @ adapter.a.to(hidden_RD.dtype).t() * adapter.scale
    return torch.cat([hidden_RD, low_RL], 1), adapter.b


def products(hidden: Tensor, head_VD: Tensor, low_VL: Tensor | None, out: Tensor) -> Tensor:
    """Logits in `out` (R, V): an adapter's part first, to which the large product is added, as in torch/linear.py."""
    if low_VL is None:
        return torch.mm(hidden, head_VD.t(), out=out)
    width = head_VD.shape[1]
    return torch.mm(hidden[:, width:], low_VL.t(), out=out).addmm_(hidden[:, :width], head_VD.t())


def back(slope_RV: Tensor, head_VD: Tensor, low_VL: Tensor | None, out: Tensor) -> None:
    """The gradient of hidden states in `out`, (R, D) or (R, D + L)."""
    if low_VL is None:
        torch.mm(slope_RV, head_VD, out=out)
        return
    width = head_VD.shape[1]
    out[:, :width], out[:, width:] = slope_RV @ head_VD, slope_RV @ low_VL


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
    def forward(ctx: Any, hidden_RD: Tensor, head_VD: Tensor, low_VL: Tensor | None, targets_R: Tensor) -> Tensor:
        wants_hidden, wants_head, wants_low, _ = ctx.needs_input_grad
        precision = torch.promote_types(hidden_RD.dtype, torch.float32)
        loss = torch.zeros((), dtype=precision, device=hidden_RD.device)
        num_rows = len(hidden_RD)
        hidden_RD, pieces = in_pieces(hidden_RD, len(head_VD))
        grad_RD = torch.empty_like(hidden_RD) if wants_hidden else None
        grad_VD = torch.zeros_like(head_VD) if wants_head else None
        compute_VD, width = head_VD.to(hidden_RD.dtype), head_VD.shape[1]
        compute_VL = None if low_VL is None else low_VL.to(hidden_RD.dtype)
        grad_VL = torch.zeros_like(low_VL) if wants_low and low_VL is not None else None
        logits = hidden_RD.new_empty(max((len(hidden_RD[rows]) for rows in pieces), default=0), len(head_VD))
        numbers = logits if logits.dtype == precision else logits.new_empty(logits.shape, dtype=precision)
        for rows in pieces:
            own_RD, places = hidden_RD[rows], targets_R[rows, None]
            logits_RV, z_RV = logits[:len(own_RD)], numbers[:len(own_RD)]
            products(own_RD, compute_VD, compute_VL, logits_RV)
            if numbers is not logits:
                z_RV.copy_(logits_RV)
            loss += _softmax_(z_RV[:len(places)], places)
            if grad_RD is None and grad_VD is None and grad_VL is None:
                continue
            z_RV[:len(places)].scatter_add_(1, places, torch.full_like(places, -1, dtype=precision))
            z_RV[len(places):] = 0  # the padding of the tile
            slope_RV = z_RV if numbers is logits else logits_RV.copy_(z_RV)
            if grad_RD is not None:
                back(slope_RV, compute_VD, compute_VL, grad_RD[rows])
            if grad_VD is not None:
                grad_VD += (slope_RV.t() @ own_RD[:, :width]).to(grad_VD.dtype)
            if grad_VL is not None:
                grad_VL += (slope_RV.t() @ own_RD[:, width:]).to(grad_VL.dtype)
        grad_RD = None if grad_RD is None else grad_RD[:num_rows]
        ctx.save_for_backward(grad_RD, grad_VD, grad_VL)
        return loss

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if grad is None else grad * slope.to(grad.dtype) for grad in ctx.saved_tensors), None)


class _PartwiseCrossEntropy(torch.autograd.Function):
    """The same for a head that comes in parts of its rows, of which one at a time is in memory as plain numbers."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, head: Handle, low_VL: Tensor | None, targets_R: Tensor) -> Tensor:
        wants_hidden, _, wants_low, _ = ctx.needs_input_grad
        precision = torch.promote_types(hidden_RD.dtype, torch.float32)
        num_rows = len(hidden_RD)
        padded_RD = functional.pad(hidden_RD, (0, 0, 0, -num_rows % TILE))

        def parts() -> Iterator[tuple[slice, Tensor, Tensor | None, Tensor]]:
            """Rows of the vocabulary, the head and its adapter there, and their logits (rows of hidden states, V)."""
            for words, part_VD in parts_of(head, hidden_RD.dtype, hidden_RD.device):
                part_VL = None if low_VL is None else low_VL[words].to(hidden_RD.dtype)
                out = padded_RD.new_empty(len(padded_RD), len(part_VD))
                yield words, part_VD, part_VL, products(padded_RD, part_VD, part_VL, out)[:num_rows].to(precision)

        most_R1 = hidden_RD.new_full((num_rows, 1), -torch.inf, dtype=precision)
        sums_R1, picked_R1 = torch.zeros_like(most_R1), torch.zeros_like(most_R1)
        for words, _, _, z_RV in parts():
            places, is_here = _places(targets_R, words)
            picked_R1 += z_RV.gather(1, places) * is_here
            before_R1, most_R1 = most_R1, torch.maximum(most_R1, z_RV.amax(1, keepdim=True))
            sums_R1 = sums_R1 * (before_R1 - most_R1).exp_() + z_RV.sub_(most_R1).exp_().sum(1, keepdim=True)
        whole_R1 = most_R1 + sums_R1.log()
        grad_RD = hidden_RD.new_zeros(padded_RD.shape, dtype=precision) if wants_hidden else None
        grad_VL = torch.zeros_like(low_VL) if wants_low and low_VL is not None else None
        if grad_RD is not None or grad_VL is not None:
            slope_RD = torch.empty_like(padded_RD)
            for words, part_VD, part_VL, z_RV in parts():
                places, is_here = _places(targets_R, words)
                slope_RV = z_RV.sub_(whole_R1).exp_().scatter_add_(1, places, -is_here.to(precision))
                slope_RV = functional.pad(slope_RV.to(hidden_RD.dtype), (0, 0, 0, len(padded_RD) - num_rows))
                if grad_RD is not None:
                    back(slope_RV, part_VD, part_VL, slope_RD)
                    grad_RD += slope_RD
                if grad_VL is not None:
                    grad_VL[words] = (slope_RV.t() @ padded_RD[:, part_VD.shape[1]:]).to(grad_VL.dtype)
        ctx.save_for_backward(None if grad_RD is None else grad_RD[:num_rows].to(hidden_RD.dtype), grad_VL)
        return (whole_R1 - picked_R1).sum()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        grad_RD, grad_VL = (None if grad is None else grad * slope.to(grad.dtype) for grad in ctx.saved_tensors)
        return grad_RD, None, grad_VL, None


def _places(targets_R: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Where the targets are among these rows of the vocabulary (R, 1), and whether they are (R, 1)."""
    places_R1 = targets_R[:, None] - words.start
    size = words.stop - words.start
    return places_R1.clamp(0, size - 1), (places_R1 >= 0) & (places_R1 < size)


def _softmax_(z_RV: Tensor, places: Tensor) -> Tensor:
    """Turns logits into probabilities in place, and gives the sum over rows of -log p[place]."""
    z_RV -= z_RV.amax(1, keepdim=True)
    picked = z_RV.gather(1, places)
    sums = z_RV.exp_().sum(1, keepdim=True)
    z_RV /= sums
    return (sums.log() - picked).sum()
