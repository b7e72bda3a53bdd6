"""The distillation loss: a teacher's log-probabilities against the output head, a few rows at a time.

Legend: R rows, D width, V vocabulary, K tokens of the teacher.

The teacher gives its K most likely tokens of each row; its remaining probability is one more outcome, and so is what
the student gives to all other tokens. Over these K + 1 outcomes, with teacher p and student q, "forward" is KL(p || q):
the student covers everything the teacher says. "Reverse" is KL(q || p): the student keeps to what the teacher would
say, which suits answers of its own (GKD, 2306.13649). As in knowledge distillation (1503.02531), both are taken at a
temperature t, multiplied by t^2, and mixed with the cross entropy of the targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from brise.models.weights import Weight
from brise.tune.losses import Dropout, back, in_pieces, products, with_head
from brise.tune.recipe import Direction

Tensor = torch.Tensor

# A lower bound on the teacher's remaining probability in reverse KL: float32 log-probabilities of a few dozen tokens
# sum to 1 within about this, and a remainder that rounds to 0 would cost infinitely much.
LEAST_REST = 1e-6


@dataclass(frozen=True)
class Blend:
    """`weight` of the teacher, 1 - weight of the targets' cross entropy. The teacher was recorded at `temperature`."""

    weight: float = 1.0
    temperature: float = 1.0
    direction: Direction = "forward"


def lumped_kl(hidden_RD: Tensor, head: Weight, targets_R: Tensor, tokens_RK: Tensor, logprobs_RK: Tensor,
              blend: Blend, dropout: Dropout | None = None) -> Tensor:
    """Sum over rows of weight * t^2 * KL + (1 - weight) * cross entropy. A row's tokens are distinct."""
    loss: Tensor = _LumpedKl.apply(*with_head(hidden_RD, head, dropout), targets_R,  # type: ignore[no-untyped-call]
                                   tokens_RK.long(), logprobs_RK, blend)
    return loss


class _LumpedKl(torch.autograd.Function):
    """Computes the gradient with respect to hidden states in the forward pass, while the logits are in memory."""

    @staticmethod
    def forward(ctx: Any, hidden_RD: Tensor, head_VD: Tensor, low_VL: Tensor | None, targets_R: Tensor,
                tokens_RK: Tensor, logprobs_RK: Tensor, blend: Blend) -> Tensor:
        wants_hidden, wants_head, wants_low = ctx.needs_input_grad[:3]
        kind = torch.float64 if hidden_RD.dtype == torch.float64 else torch.float32
        loss = torch.zeros((), dtype=kind, device=hidden_RD.device)
        num_rows = len(hidden_RD)
        hidden_RD, pieces = in_pieces(hidden_RD, len(head_VD), 2)  # a second array stands beside the logits
        grad_RD = torch.empty_like(hidden_RD) if wants_hidden else None
        grad_VD = torch.zeros_like(head_VD) if wants_head else None
        compute_VD, width = head_VD.to(hidden_RD.dtype), head_VD.shape[1]
        compute_VL = None if low_VL is None else low_VL.to(hidden_RD.dtype)
        grad_VL = torch.zeros_like(low_VL) if wants_low and low_VL is not None else None
        for rows in pieces:
            targets = targets_R[rows]
            own_RD = hidden_RD[rows]
            logits_RV = products(own_RD, compute_VD, compute_VL, own_RD.new_empty(len(own_RD), len(head_VD))).to(kind)
            part, slope_RV = _blended(logits_RV[:len(targets)], targets, tokens_RK[rows], logprobs_RK[rows].to(kind),
                                      blend)
            loss += part
            slope_RV = functional.pad(slope_RV.to(hidden_RD.dtype), (0, 0, 0, len(logits_RV) - len(targets)))
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
        grads = (None if grad is None else grad * slope.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def _blended(logits_RV: Tensor, targets_R: Tensor, tokens_RK: Tensor, logprobs_RK: Tensor,
             blend: Blend) -> tuple[Tensor, Tensor]:
    """The sum of the rows' losses, and its gradient with respect to the logits."""
    t, weight = blend.temperature, blend.weight
    divergence = _forward_kl if blend.direction == "forward" else _reverse_kl
    loss, slope_RV = divergence(logits_RV / t, tokens_RK, _normal(logprobs_RK))
    loss, slope_RV = weight * t * t * loss, slope_RV.mul_(weight * t)
    if weight < 1:
        places = targets_R[:, None]
        loss = loss + (1 - weight) * (logits_RV.logsumexp(1).sum() - logits_RV.gather(1, places).sum())
        own_RV = logits_RV.softmax(1).scatter_add_(1, places, torch.full_like(places, -1, dtype=logits_RV.dtype))
        slope_RV.add_(own_RV, alpha=1 - weight)
    return loss, slope_RV


def _normal(logprobs_RK: Tensor) -> Tensor:
    """Log-probabilities whose sum is at most 1, however they were rounded."""
    return logprobs_RK - logprobs_RK.logsumexp(1, keepdim=True).clamp(min=0)


def _rest(logprobs_RK: Tensor) -> Tensor:
    """1 - sum of exp, computed so that it keeps its digits when it is small."""
    return -torch.expm1(logprobs_RK.logsumexp(1)).clamp(max=0)


def _forward_kl(scores_RV: Tensor, tokens_RK: Tensor, logprobs_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of p (log p - log q). Its gradient is q - p for the teacher's tokens; the others share p's rest as q does."""
    sums_R1 = scores_RV.logsumexp(1, keepdim=True)
    log_q_RK = scores_RV.gather(1, tokens_RK) - sums_R1
    others_RV, rests_R1 = _others(scores_RV, tokens_RK)
    p_RK, p_rest_R = logprobs_RK.exp(), _rest(logprobs_RK)
    has_rest_R = (p_rest_R > 0) & rests_R1[:, 0].isfinite()
    of_rest_R = torch.xlogy(p_rest_R, p_rest_R) - p_rest_R * (rests_R1 - sums_R1)[:, 0]
    loss = (p_RK * (logprobs_RK - log_q_RK)).sum() + of_rest_R[has_rest_R].sum()
    slope_RV = (scores_RV - sums_R1).exp_().scatter_add_(1, tokens_RK, -p_RK)
    shares_RV = others_RV.sub_(torch.where(has_rest_R[:, None], rests_R1, 0)).exp_()
    return loss, slope_RV.sub_(shares_RV.mul_((p_rest_R * has_rest_R)[:, None]))


def _reverse_kl(scores_RV: Tensor, tokens_RK: Tensor, logprobs_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of q (log q - log p) = sum of q a. Its gradient is q (a - mean of a under q), a being the outcome's."""
    sums_R1 = scores_RV.logsumexp(1, keepdim=True)
    log_q_RK = scores_RV.gather(1, tokens_RK) - sums_R1
    _, rests_R1 = _others(scores_RV, tokens_RK)
    log_q_rest_R1 = rests_R1 - sums_R1
    p_rest_R1 = _rest(logprobs_RK)[:, None].clamp(min=LEAST_REST)
    a_RK = log_q_RK - logprobs_RK
    a_rest_R1 = torch.where(log_q_rest_R1.isfinite(), log_q_rest_R1 - p_rest_R1.log(), 0)
    q_RK = log_q_RK.exp()
    means_R1 = (q_RK * a_RK).sum(1, keepdim=True) + log_q_rest_R1.exp() * a_rest_R1
    slope_RV = (scores_RV - sums_R1).exp_().mul_(a_rest_R1 - means_R1)
    return means_R1.sum(), slope_RV.scatter_(1, tokens_RK, q_RK * (a_RK - means_R1))


def _others(scores_RV: Tensor, tokens_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Scores without the teacher's tokens, and the log of the sum of their exponentials.

    They are summed directly: as 1 minus the teacher's tokens, a small sum would have no digits."""
    others_RV = scores_RV.scatter(1, tokens_RK, -torch.inf)
    return others_RV, others_RV.logsumexp(1, keepdim=True)
