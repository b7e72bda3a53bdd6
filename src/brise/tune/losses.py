"""Losses over the output head, a few rows at a time: logits of a whole batch are never there at once.

Legend: R rows, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from brise.models.weights import Weight
from brise.ops.torch_weights import handle_of, numbers_of

LOGITS = 1 << 23  # numbers of logits at a time: 32 MB in float32

Tensor = torch.Tensor


def cross_entropy(hidden_RD: Tensor, head: Weight, targets_R: Tensor) -> Tensor:
    """Sum over rows of -log softmax(head hidden)[target], in float32. The head may be trainable."""
    handle = handle_of(head)
    head_VD = handle if isinstance(handle, Tensor) else numbers_of(handle, hidden_RD.dtype)
    loss: Tensor = _CrossEntropy.apply(hidden_RD, head_VD, targets_R)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    """The gradient by hidden states is made in the forward pass, while the logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, head_VD: Tensor, targets_R: Tensor) -> Tensor:
        wants_hidden, wants_head, _ = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float64 if hidden_RD.dtype == torch.float64 else torch.float32,
                           device=hidden_RD.device)
        grad_RD = torch.empty_like(hidden_RD) if wants_hidden else None
        grad_VD = torch.zeros_like(head_VD) if wants_head else None
        step = max(1, LOGITS // len(head_VD))
        compute_VD = head_VD.to(hidden_RD.dtype)
        for first in range(0, len(hidden_RD), step):
            rows = slice(first, first + step)
            logits_RV = (hidden_RD[rows] @ compute_VD.t()).to(loss.dtype)
            places = targets_R[rows, None]
            loss += logits_RV.logsumexp(1).sum() - logits_RV.gather(1, places).sum()
            if grad_RD is None and grad_VD is None:
                continue
            slope_RV = logits_RV.softmax(1).scatter_add_(1, places, torch.full_like(places, -1, dtype=loss.dtype))
            slope_RV = slope_RV.to(hidden_RD.dtype)
            if grad_RD is not None:
                grad_RD[rows] = slope_RV @ compute_VD
            if grad_VD is not None:
                grad_VD += (slope_RV.t() @ hidden_RD[rows]).to(grad_VD.dtype)
        ctx.save_for_backward(grad_RD, grad_VD)
        return loss

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_RD, grad_VD = ctx.saved_tensors
        return (None if grad_RD is None else grad_RD * slope.to(grad_RD.dtype),
                None if grad_VD is None else grad_VD * slope.to(grad_VD.dtype), None)
