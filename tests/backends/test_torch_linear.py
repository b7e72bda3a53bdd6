"""Linears in bfloat16: an adapter's product is not lost in rounding."""

from __future__ import annotations

import pytest
import torch

from brise.backends.torch.linear import linears
from brise.backends.torch.weights import Packed
from brise.models.weights import Lora, LowRank, Placed
from brise.quant.formats import FORMATS

TOKENS, WIDTH, ROWS, RANK = 64, 256, 200, 8


def matrix(*, is_packed: bool) -> Placed:
    """Entries of about 1/sqrt(WIDTH), so that outputs are about 1."""
    if not is_packed:
        return Placed((ROWS, WIDTH), torch.randn(ROWS, WIDTH).mul_(WIDTH ** -0.5).bfloat16())
    data = torch.randint(0, 256, (ROWS, FORMATS["Q8_0"].row_bytes(WIDTH)), dtype=torch.uint8).view(ROWS, -1, 34)
    data[..., :2] = torch.tensor([2.0 ** -10], dtype=torch.float16).view(torch.uint8)  # bfloat16 has all its numbers
    return Placed((ROWS, WIDTH), Packed("Q8_0", WIDTH, data.view(ROWS, -1)))


def kept(values: torch.Tensor, added: torch.Tensor) -> float:
    """The share of the added values that is left in the result, by least squares: 1 if nothing is lost."""
    return float((values * added).sum() / added.square().sum())


@pytest.mark.parametrize("has_magnitude", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_small_parts_of_an_adapter_do_not_vanish(is_packed: bool, has_magnitude: bool) -> None:
    """They are a thousandth of what they are added to; bfloat16 has steps of a 256th to a 128th.

    An output's own error is a rounding of at most 1/512 of it, up or down, so that over 12,800 outputs the share
    has an error of about (1/512) / sqrt(3) / 0.001 / sqrt(12800) = 0.01, of which five are allowed. Added to a product
    that is rounded already, half of the adapter is lost, and with a magnitude two thirds.
    """
    torch.manual_seed(0)
    base, x = matrix(is_packed=is_packed), torch.randn(TOKENS, WIDTH).bfloat16()
    (plain,) = linears(x.double(), (base,), None, {})
    a, b = torch.randn(RANK, WIDTH).mul_(WIDTH ** -0.5), torch.randn(ROWS, RANK).mul_(0.001 * RANK ** -0.5)
    lengths = torch.linalg.vector_norm(linears(torch.eye(WIDTH), (base,), None, {})[0], dim=0)
    magnitude = lengths * (1 + 0.001 * torch.randn(ROWS)) if has_magnitude else None
    (exact,) = linears(x.double(), (Lora(base, (LowRank(a, b, 1.0, magnitude),)),), None, {})
    (actual,) = linears(x, (Lora(base, (LowRank(a, b, 1.0, magnitude),)),), None, {})
    assert kept(actual.double() - plain, exact - plain) == pytest.approx(1.0, abs=0.05)


def test_a_gradient_holds_what_goes_through_the_adapter() -> None:
    """As above, of x."""
    torch.manual_seed(0)
    base, x = matrix(is_packed=False), torch.randn(TOKENS, WIDTH).bfloat16()
    a, b = torch.randn(RANK, WIDTH).mul_(0.001 * RANK ** -0.5), torch.randn(ROWS, RANK).mul_(ROWS ** -0.5)
    slope = torch.randn(TOKENS, ROWS).bfloat16()

    def gradient(dtype: torch.dtype, *, is_adapted: bool) -> torch.Tensor:
        leaf = x.to(dtype).requires_grad_()
        weight = Lora(base, (LowRank(a.requires_grad_(), b.requires_grad_(), 1.0),)) if is_adapted else base
        (y,) = linears(leaf, (weight,), None, {})
        y.backward(slope.to(dtype))
        assert leaf.grad is not None
        return leaf.grad.double()

    plain = gradient(torch.float64, is_adapted=False)
    exact, actual = (gradient(dtype, is_adapted=True) for dtype in (torch.float64, torch.bfloat16))
    assert kept(actual - plain, exact - plain) == pytest.approx(1.0, abs=0.05)
