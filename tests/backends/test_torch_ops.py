"""The torch ops: the case table against the reference, and every gradient against finite differences in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from brise.backends.reference.ops import ReferenceOps
from brise.models.batch import Batch
from brise.models.weights import Dense, Lora, LowRank, Quant, Weight
from brise.quant.dequantize import dequantize
from tests.backends.cases import table
from tests.backends.inputs import BLOCKS, weight
from tests.backends.rows import Row

torch = pytest.importorskip("torch")
torch_backend = pytest.importorskip("brise.backends.torch.backend")

TABLE = {name: rows for name, rows in table().items() if name.split()[-1] not in ("f32", "f16", "q8", "q4")}
F64 = torch.float64


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """These tensors are tiny: a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class OnArrays:
    """The torch ops on NumPy arrays, as the table calls them."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def __getattr__(self, op: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            floats = [torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) and x.dtype == np.float32
                      and op not in ("rope_table",) else x for x in arguments]
            out = getattr(self.ops, op)(*floats)
            return tuple(part.numpy() for part in out) if isinstance(out, tuple) else out.numpy()
        return call


@pytest.mark.parametrize("keep", ["dense", "packed"])
@pytest.mark.parametrize("group", TABLE)
def test_op_agrees_with_the_reference(group: str, keep: str, expected: Callable[[Row], np.ndarray]) -> None:
    backend = torch_backend.TorchBackend(keep=keep)
    failures = [failure for row in TABLE[group][::1 if keep == "dense" else 3]
                if (failure := compare(backend, row, expected(row)))]
    assert not failures, f"{len(failures)} of {len(TABLE[group])} rows:\n" + "\n".join(failures[:8])


def compare(backend: Any, row: Row, expected: np.ndarray) -> str | None:
    actual = row.run(OnArrays(backend.ops()), backend, np.float32)  # type: ignore[arg-type]
    if actual.shape != expected.shape or actual.dtype != np.float32:
        return f"{row}: {actual.dtype} {actual.shape} in place of float32 {expected.shape}"
    allowed = np.broadcast_to(row.allowed(expected), expected.shape)
    error = np.abs(actual - expected)
    return None if (error <= allowed).all() else f"{row}: off by {np.nanmax(error - allowed):.3g} more than allowed"


@pytest.mark.parametrize("format", BLOCKS)
def test_native_decoding_is_dequantize_bit_for_bit(format: str) -> None:
    decode = pytest.importorskip("brise.backends.torch.weights").decode
    w = weight(np.random.default_rng(0), format, 67, 512)
    assert isinstance(w, Quant)
    data = torch.from_numpy(w.data)
    expected = dequantize(format, w.data, 512)
    np.testing.assert_array_equal(decode(format, 512, data, torch.float32).numpy().view(np.uint32),
                                  expected.view(np.uint32))
    assert torch.equal(decode(format, 512, data, torch.bfloat16), torch.from_numpy(expected).bfloat16())


def leaf(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape)).requires_grad_()


def batch(lengths: list[int], parents: list[int] | None) -> Batch:
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    first = [0 if parents is None or p < 0 else lengths[p] for p in (parents or [-1] * len(lengths))]
    positions = np.concatenate([np.arange(f, f + n) for f, n in zip(first, lengths, strict=True)]).astype(np.int32)
    return Batch(np.zeros(starts[-1], np.int32), positions, starts, np.zeros(0, np.int64),
                 parents=None if parents is None else np.array(parents, np.int32))


ATTENDED = [([4], None, None), ([3, 3, 3], None, None), ([2, 40, 5], None, None), ([5, 1, 6], None, 3),
            ([4, 3, 2, 1], [-1, 0, 0, -1], None), ([4, 3, 3], [-1, 0, 0], 3), ([3, 0, 2], [-1, 0, 0], None)]


@pytest.mark.parametrize(("lengths", "parents", "window"), ATTENDED)
def test_attention_is_the_references_and_has_its_gradient(lengths: list[int], parents: list[int] | None,
                                                          window: int | None) -> None:
    ops, own, tokens = torch_backend.TorchBackend(dtype=F64).ops(), batch(lengths, parents), sum(lengths)
    q, k, v = leaf(tokens, 4, 6), leaf(tokens, 2, 6), leaf(tokens, 2, 6)
    expected = ReferenceOps(precision=np.float64).attend(*(x.detach().numpy() for x in (q, k, v)), own, None, 0, 0.4,
                                                         window)
    np.testing.assert_allclose(ops.attend(q, k, v, own, None, 0, 0.4, window).detach().numpy(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *x: ops.attend(*x, own, None, 0, 0.4, window), (q, k, v), fast_mode=True)


def lora(w: Weight, magnitude: Any = None) -> tuple[Lora, list[Any]]:
    rows, cols = w.shape
    a, b = leaf(2, cols), leaf(rows, 2)
    return Lora(w, (LowRank(a, b, 0.7, magnitude),)), [a, b]  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", ["dense", "packed"])
@pytest.mark.parametrize("has_dropout", [False, True])
def test_adapters_have_their_gradients(keep: str, has_dropout: bool) -> None:
    backend, rng = torch_backend.TorchBackend(dtype=F64, keep=keep), np.random.default_rng(0)
    placed = [backend.place("w", weight(rng, "Q8_0", rows, 32)) for rows in (7, 5, 3)]
    first, second = lora(placed[0]), lora(placed[1])
    mask = torch.from_numpy(rng.integers(0, 2, (4, 32)) * 2.0)
    ops = torch_backend.TorchOps(dtype=F64, dropout=(lambda x: x * mask) if has_dropout else None)
    assert torch.autograd.gradcheck(lambda x, *_: ops.linears(x, (first[0], placed[2], second[0])),
                                    (leaf(4, 32), *first[1], *second[1]), fast_mode=True)


def test_dora_is_the_references() -> None:
    rng = np.random.default_rng(0)
    backend = torch_backend.TorchBackend(dtype=F64)
    w, m = weight(rng, "F32", 7, 9), leaf(7)
    assert isinstance(w, Dense)
    placed, sides = lora(backend.place("w", w), m)
    x = leaf(4, 9)
    low = LowRank(*(side.detach().numpy() for side in sides), 0.7, m.detach().numpy())
    expected = ReferenceOps(precision=np.float64).linear(x.detach().numpy(), Lora(w, (low,)))
    np.testing.assert_allclose(backend.ops().linear(x, placed).detach().numpy(), expected, rtol=1e-12)


OPS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]] = {
    "silu_mul": (lambda o, x, y: o.silu_mul(x, y), ((3, 5), (3, 5))),
    "gelu_mul": (lambda o, x, y: o.gelu_mul(x, y), ((3, 5), (3, 5))),
    "gelu_tanh": (lambda o, x: o.gelu_tanh(x), ((3, 5),)),
    "gelu": (lambda o, x: o.gelu(x), ((3, 5),)),
    "rope half": (lambda o, x: o.rope(x, o.rope_table(np.arange(3), [1.0, 0.3], 1.1), "half"), ((3, 2, 6),)),
    "rope interleaved": (lambda o, x: o.rope(x, o.rope_table(np.arange(3), [1.0, 0.3], 1.1), "interleaved"),
                         ((3, 2, 6),)),
    "scale": (lambda o, x: o.scale(x, 0.22), ((3, 5),)),
    "scale_queries": (lambda o, x: o.scale_queries(x, np.arange(3), 0.1, 2), ((3, 2, 4),)),
    "route": (lambda o, x: o.route(x, 2, 1.5), ((3, 5),)),
    "concat": (lambda o, x, y: o.columns(o.concat(x, y), 1, 4), ((3, 2, 2), (3, 2, 3))),
    "put_rows": (lambda o, x: o.put_rows(x, np.ones((2, 4)), np.array([1, -1, 0])), ((3, 4),)),
    "merge_patches": (lambda o, x: o.merge_patches(x, [(2, 2), (2, 4)], 2), ((12, 3),)),
    "attend_latent": (lambda o, q, kv: o.attend_latent(q, kv, batch([3, 2], None), None, 0, 0.5, 4),
                      ((5, 3, 6), (5, 1, 6)))}


@pytest.mark.parametrize("op", OPS)
def test_op_has_its_gradient(op: str) -> None:
    call, shapes = OPS[op]
    ops = torch_backend.TorchBackend(dtype=F64).ops()
    assert torch.autograd.gradcheck(lambda *x: call(ops, *x), tuple(leaf(*shape) for shape in shapes), fast_mode=True)


def test_rms_norm_has_its_gradient() -> None:
    w = Dense("F32", (5,), np.random.default_rng(0).standard_normal(5).astype(np.float32))
    backend = torch_backend.TorchBackend(dtype=F64)
    placed = backend.place("norm", w)
    assert torch.autograd.gradcheck(lambda x: backend.ops().rms_norm(x, placed, 1e-5), (leaf(3, 5),), fast_mode=True)
