"""The lumped divergences, against their definitions written out and differentiated by torch in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from brise.models.weights import Placed
from brise.tune import losses
from brise.tune.distill import distill
from brise.tune.distill.distill import Blend, lumped_kl
from brise.tune.recipe import Direction

ROWS, WIDTH, VOCAB, K = 7, 12, 40, 5
BLENDS = [Blend(weight, temperature, direction) for weight, temperature, direction in itertools.product(
    (1.0, 0.7, 0.0), (1.0, 2.5), ("forward", "reverse"))]  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def problem(seed: int = 0, k: int = K, vocab: int = VOCAB, sharp: float = 1.0):  # type: ignore[no-untyped-def]
    """Hidden states, head, targets, and the k best of a random teacher's log-probabilities, in float64."""
    torch.manual_seed(seed)
    hidden = torch.randn(ROWS, WIDTH, dtype=torch.float64, requires_grad=True)
    head = torch.randn(vocab, WIDTH, dtype=torch.float64, requires_grad=True)
    teacher = (sharp * torch.randn(ROWS, vocab, dtype=torch.float64)).log_softmax(1)
    logprobs, tokens = teacher.topk(k, dim=1)
    return hidden, head, torch.randint(vocab, (ROWS,)), tokens, logprobs


def defined(hidden, head, targets, tokens, logprobs, blend: Blend):  # type: ignore[no-untyped-def]
    """The loss as the module's first lines define it, over dense logits."""
    logits = hidden @ head.t()
    q = (logits / blend.temperature).softmax(1)
    own = torch.gather(q, 1, tokens)
    outside = torch.ones_like(q).scatter(1, tokens, 0)
    q_all = torch.cat([own, (q * outside).sum(1, keepdim=True)], 1)
    p = logprobs.exp()
    p_all = torch.cat([p, (1 - p.sum(1, keepdim=True)).clamp(min=0)], 1)
    if blend.direction == "forward":
        kl = (torch.xlogy(p_all, p_all) - torch.xlogy(p_all, q_all)).sum()
    else:
        kl = (torch.xlogy(q_all, q_all) - torch.xlogy(q_all, p_all)).sum()
    cross = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    return blend.weight * blend.temperature**2 * kl + (1 - blend.weight) * cross


@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_loss_and_gradients_are_those_of_the_definition(blend: Blend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "LOGITS", 2 * 3 * VOCAB)  # three rows at a time
    hidden, head, targets, tokens, logprobs = problem()
    expected = defined(hidden, head, targets, tokens, logprobs, blend)
    expected_grads = torch.autograd.grad(expected, (hidden, head))
    loss = lumped_kl(hidden, Placed((VOCAB, WIDTH), head), targets, tokens, logprobs, blend)
    grads = torch.autograd.grad(loss, (hidden, head))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("blend", BLENDS, ids=str)
def test_gradcheck(blend: Blend) -> None:
    hidden, head, targets, tokens, logprobs = problem(1)
    assert torch.autograd.gradcheck(
        lambda h, w: lumped_kl(h, Placed((VOCAB, WIDTH), w), targets, tokens, logprobs, blend), (hidden, head))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_teacher_of_the_whole_vocabulary_has_no_rest(direction: Direction) -> None:
    hidden, head, targets, tokens, logprobs = problem(2, k=VOCAB)
    blend = Blend(direction=direction)
    log_q = (hidden @ head.t()).log_softmax(1).gather(1, tokens)
    pair = (logprobs, log_q) if direction == "forward" else (log_q, logprobs)
    expected = (pair[0].exp() * (pair[0] - pair[1])).sum()
    loss = lumped_kl(hidden, Placed((VOCAB, WIDTH), head), targets, tokens, logprobs, blend)
    (grad,) = torch.autograd.grad(loss, (hidden,))
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, (hidden,))[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_certain_teacher_in_float32_gives_finite_numbers(direction: Direction) -> None:
    hidden, head, targets, tokens, logprobs = problem(3, sharp=60.0)
    rounded = logprobs.float() + torch.full_like(logprobs, 1e-7).float()  # sums to a hair over 1
    small = hidden.detach().float().requires_grad_()
    loss = lumped_kl(small, Placed((VOCAB, WIDTH), head.detach().float()), targets, tokens, rounded,
                     Blend(direction=direction))
    (grad,) = torch.autograd.grad(loss, (small,))
    assert torch.isfinite(loss) and torch.isfinite(grad).all() and loss > 0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_student_that_is_the_teacher_has_nothing_to_learn(direction: Direction) -> None:
    hidden, head, targets, _, _ = problem(4)
    logprobs, tokens = (hidden @ head.t()).detach().log_softmax(1).topk(K, dim=1)
    loss = lumped_kl(hidden, Placed((VOCAB, WIDTH), head), targets, tokens, logprobs, Blend(direction=direction))
    (grad,) = torch.autograd.grad(loss, (hidden,))
    assert abs(loss.item()) < 1e-12 and float(grad.abs().max()) < 1e-12


def test_a_rest_as_small_as_1e_12_keeps_its_digits() -> None:
    rest = distill._rest(torch.tensor([[np.log1p(-1e-12)]], dtype=torch.float64))
    assert float(rest[0]) == pytest.approx(1e-12, rel=1e-9)


def test_float32_is_near_float64() -> None:
    hidden, head, targets, tokens, logprobs = problem(5)
    exact = lumped_kl(hidden, Placed((VOCAB, WIDTH), head), targets, tokens, logprobs, Blend(0.5, 2.0))
    rough = lumped_kl(hidden.float(), Placed((VOCAB, WIDTH), head.float()), targets, tokens, logprobs.float(),
                      Blend(0.5, 2.0))
    assert rough.item() == pytest.approx(exact.item(), rel=1e-5)
