"""Norm, rotation and activation with explicit gradients: each saves only the few numbers that its gradient needs.

Legend: T tokens, D width, H heads, E numbers a head. Sums and roots are computed in float32 (float64 stays float64).
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
    """Saves x in the type of the result, which is that of the gradient, and one number per row."""

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
    """Saves gate and up, not silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), functional.silu(gate).mul_(grad)


def gelu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up, with the approximation of gelu by tanh."""
    product: Tensor = _GeluMul.apply(gate, up)  # type: ignore[no-untyped-call]
    return product


class _GeluMul(torch.autograd.Function):
    """Saves gate and up, not gelu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.gelu(gate, approximate="tanh").mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate = torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh")
        return dgate, functional.gelu(gate, approximate="tanh").mul_(grad)


def rotate(x: Tensor, table: Tensor, layout: Layout) -> Tensor:
    """x (T, H, E) with the first table-width numbers of each head rotated; table has cosines, then sines."""
    rotated: Tensor = _Rotate.apply(x, table, layout)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, so x is not saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(table)
        ctx.layout = layout
        cos, sin = table.chunk(2, dim=-1)
        return _rotated(x, cos, sin, layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors[0].chunk(2, dim=-1)
        return _rotated(grad, cos, -sin, ctx.layout), None, None


def _rotated(x_THE: Tensor, cos: Tensor, sin: Tensor, layout: Layout) -> Tensor:
    """Rotates in float32: with cosines rounded to bfloat16 it would not be a rotation."""
    half = cos.shape[-1]
    first = widened(x_THE[..., :2 * half])
    if layout == "interleaved":
        pairs = torch.view_as_complex(first.reshape(*first.shape[:-1], half, 2).contiguous())
        factors = torch.complex(cos.to(first.dtype), sin.to(first.dtype))[:, None]
        rotated = torch.view_as_real(pairs * factors).flatten(-2)
    else:
        cos, sin = cos.to(first.dtype)[:, None], sin.to(first.dtype)[:, None]
        a, b = first[..., :half], first[..., half:]
        rotated = torch.empty_like(first)
        torch.mul(a, cos, out=rotated[..., :half]).addcmul_(b, sin, value=-1)
        torch.mul(a, sin, out=rotated[..., half:]).addcmul_(b, cos)
    rotated = rotated.to(x_THE.dtype)
    return rotated if 2 * half == x_THE.shape[-1] else torch.cat([rotated, x_THE[..., 2 * half:]], dim=-1)
