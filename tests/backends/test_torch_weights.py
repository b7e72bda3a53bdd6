"""The torch backend: weights that it refuses, weights that are trained, and the ops for images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.engine import vision
from brise.errors import UnsupportedError
from brise.models import pixtral
from brise.models.weights import Dense, Lora, LowRank, Placed, Quant, Weight, place
from tests import tolerances
from tests.goldens.vision import read_vision

torch = pytest.importorskip("torch")
torch_backend = pytest.importorskip("brise.backends.torch.backend")

ROWS = np.ones((4, 32), np.float32)
SIDES = LowRank(np.ones((2, 32), np.float32), np.ones((4, 2), np.float32), 1.0)
PLAIN = Dense("F32", (4, 32), ROWS)
REFUSED: dict[str, tuple[Any, Weight, str]] = {
    "float16": (torch.float16, PLAIN, "torch.float16; the torch backend computes in float32 and bfloat16"),
    "format": (torch.float32, Quant("IQ2_XS", (4, 32), np.zeros((4, 9), np.uint8)), "w has weight format IQ2_XS"),
    "two adapters": (torch.float32, Lora(PLAIN, (SIDES, SIDES)), "w has 2 adapters; the torch backend trains one"),
    "tokens": (torch.float32, Lora(PLAIN, (SIDES,), np.zeros(3, np.int32)), "w has 1 adapters"),
    "placed": (torch.float32, Placed((4, 32), ROWS), "w has been placed in another backend already")}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_refused_by_name(what: str) -> None:
    dtype, weight, message = REFUSED[what]
    with pytest.raises(UnsupportedError, match=message):
        torch_backend.TorchBackend(dtype=dtype).place("w", weight)


def leaf(*shape: int) -> Any:
    """Random float64 numbers that want a gradient."""
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape)).requires_grad_()


def placed(tensor: Any) -> Placed:
    return Placed(tuple(tensor.shape), tensor)


def stack(*matrices: Any) -> Placed:
    return Placed((len(matrices), *matrices[0].shape), matrices)


def experts(o: Any, x: Any, gates: Any, *w: Any) -> Any:
    return o.experts(x, o.route(gates, 2, 1.0), stack(*w[0:3]), stack(*w[3:6]), stack(*w[6:9]))


TRAINED: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "rms_norm": (lambda o, x, w: o.rms_norm(x, placed(w), 1e-5), ((3, 5), (5,))),
    "rms_norm of heads": (lambda o, x, w: o.rms_norm(x, placed(w), 1e-5), ((3, 2, 4), (4,))),
    "layer_norm": (lambda o, x, w, b: o.layer_norm(x, placed(w), placed(b), 1e-5), ((3, 5), (5,), (5,))),
    "bias": (lambda o, x, b: o.bias(x, placed(b)), ((3, 5), (5,))),
    "embed": (lambda o, w: o.embed(placed(w), np.array([2, 0, 2, 5])), ((6, 4),)),
    "linear": (lambda o, x, w: o.linear(x, placed(w)), ((3, 5), (4, 5))),
    "linears": (lambda o, x, w, v: torch.cat(o.linears(x, (placed(w), placed(v))), 1), ((3, 5), (4, 5), (2, 5))),
    "heads_linear": (lambda o, x, v, w: o.heads_linear(x, stack(v, w)), ((3, 2, 4), (5, 4), (5, 4))),
    "experts": (experts, ((4, 5), (4, 3), *((6, 5),) * 3, *((5, 6),) * 3, *((6, 5),) * 3))}


@pytest.mark.parametrize("op", TRAINED)
def test_weights_that_are_trained_have_their_gradient(op: str) -> None:
    """Every leaf: what goes in, and the weights."""
    call, shapes = TRAINED[op]
    ops = torch_backend.TorchBackend(dtype=torch.float64).ops()
    leaves = tuple(leaf(*shape) for shape in shapes)
    if op == "experts":  # equal numbers would make equal experts
        leaves = tuple((x.detach() * (1 + 0.1 * index)).requires_grad_() for index, x in enumerate(leaves))
    assert torch.autograd.gradcheck(lambda *x: call(ops, *x), leaves, fast_mode=True)


def test_the_ops_of_encoders_are_the_references() -> None:
    reference, ops = ReferenceOps(precision=np.float64), torch_backend.TorchBackend(dtype=torch.float64).ops()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 3))
    on_torch = torch.from_numpy(x)
    grids = [(2, 2), (2, 4)]
    np.testing.assert_array_equal(ops.merge_patches(on_torch, grids, 2).numpy(), reference.merge_patches(x, grids, 2))
    np.testing.assert_array_equal(ops.stack_rows(on_torch, 4).numpy(), reference.stack_rows(x, 4))
    for size, stride in ((3, 1), (3, 2), (5, 3), (1, 2)):
        np.testing.assert_array_equal(ops.windows(on_torch, size, stride).numpy(), reference.windows(x, size, stride))
    np.testing.assert_array_equal(ops.slice_rows(on_torch, 3, 7).numpy(), reference.slice_rows(x, 3, 7))
    np.testing.assert_array_equal(ops.join_rows([on_torch[:2], on_torch[5:]]).numpy(),
                                  reference.join_rows([x[:2], x[5:]]))
    np.testing.assert_allclose(ops.gelu(on_torch).numpy(), reference.gelu(x), rtol=1e-12, atol=1e-15)
    rows, columns = np.indices((3, 4)).reshape(2, -1).astype(np.int32)
    inv_freq = (1.0, 0.5, 0.25, 0.125)
    np.testing.assert_allclose(ops.rope_table_2d(rows, columns, inv_freq).numpy(),
                               reference.rope_table_2d(rows, columns, inv_freq), rtol=1e-12, atol=1e-15)


def test_a_vision_encoder_gives_transformers_features_and_takes_gradients() -> None:
    golden, backend = read_vision(), torch_backend.TorchBackend()
    patches = vision.pack(golden.config, golden.images)
    placed = place(golden.weights, backend.place)
    assert isinstance(placed.patch_conv, Placed)
    weight = placed.patch_conv.handle.requires_grad_()
    patches = replace(patches, values=torch.from_numpy(patches.values))
    features = pixtral.forward(backend.ops(), golden.config, placed, patches)
    assert np.abs(features.detach().numpy() - golden.features).max() < tolerances.VISION_FEATURES
    features.sum().backward()
    assert weight.grad is not None and float(weight.grad.abs().sum()) > 0
