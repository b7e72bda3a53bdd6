"""Norm, rotation and activation with gradients written out: each keeps the few numbers that its gradient needs.

Legend: T tokens, D width, H heads, E numbers a head. Sums and roots are taken in float32 (float64 stays float64).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from brise.models.rope import Layout

Tensor = torch.Tensor


def widened(x: Tensor) -> Tensor:
    """x in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, w: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * w over the last axis, as `dtype`."""
    normed: Tensor = _RmsNorm.apply(x, w, eps, dtype)  # type: ignore[no-untyped-call]
    return normed


class _RmsNorm(torch.autograd.Function):
    """Keeps x in the result's type, which the gradient has anyway, and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = widened(x)
        inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x.to(dtype), inverse, w)
        return (wide * inverse).mul_(w.to(wide.dtype)).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, w = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[1]:
            dw = (widened(grad) * x * inverse).flatten(0, -2).sum(0).to(w.dtype)
        if ctx.needs_input_grad[0]:
            scaled = grad * w.to(inverse.dtype)
            share = (scaled * x).sum(-1, keepdim=True).mul_(inverse.pow(3)).div_(-x.shape[-1])
            dx = scaled.mul_(inverse).addcmul_(share, x.to(scaled.dtype))
        return dx, dw, None, None


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gate * sigmoid(gate) * up."""
    product: Tensor = _SiluMul.apply(gate, up)  # type: ignore[no-untyped-call]
    return product


class _SiluMul(torch.autograd.Function):
    """Keeps gate and up, not silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), functional.silu(gate).mul_(grad)


def turn(x: Tensor, table: Tensor, layout: Layout) -> Tensor:
    """x (T, H, E) with the first table-width numbers of each head rotated; table has cosines, then sines."""
    turned: Tensor = _Turn.apply(x, table, layout)  # type: ignore[no-untyped-call]
    return turned


class _Turn(torch.autograd.Function):
    """A rotation's gradient is the rotation back, so that x is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(table)
        ctx.layout = layout
        cos, sin = table.chunk(2, dim=-1)
        return _turned(x, cos, sin, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors[0].chunk(2, dim=-1)
        return _turned(grad, cos, -sin, ctx.layout), None, None


def _turned(x_THE: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Rotated in float32: a cosine rounded to bfloat16 would be no rotation any more."""
    half = cos.shape[-1]
    first = widened(x_THE[..., :2 * half])
    if layout == "interleaved":
        pairs = torch.view_as_complex(first.reshape(*first.shape[:-1], half, 2).contiguous())
        factors = torch.complex(cos.to(first.dtype), sin.to(first.dtype))[:, None]
        turned = torch.view_as_real(pairs * factors).flatten(-2)
    else:
        cos, sin = cos.to(first.dtype)[:, None], sin.to(first.dtype)[:, None]
        a, b = first[..., :half], first[..., half:]
        turned = torch.empty_like(first)
        torch.mul(a, cos, out=turned[..., :half]).addcmul_(b, sin, value=-1)
        torch.mul(a, sin, out=turned[..., half:]).addcmul_(b, cos)
    turned = turned.to(x_THE.dtype)
    return turned if 2 * half == x_THE.shape[-1] else torch.cat([turned, x_THE[..., 2 * half:]], dim=-1)
