"""The logits of tests/goldens are what version 0.1 computed, bit for bit: a change that moves code moves no number.

tests/stored/v0_1/golden_logits.json holds a SHA-256 for each backend and each way of computing. It was made at commit
2e0fa6d on x86-64 Linux (tests/stored/make_v0_1.py); the native lines of caches in f16, q8 and q4 were made anew
when their products became those of integers. The native backend sums in its own order, so its bits depend on
the instruction set alone; one that was not recorded is skipped. The reference sums in the order of NumPy's BLAS, which
differs between processors and versions: its bits are compared where both are those of the recording.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from brise.models import decoder
from brise.models.weights import Array, place
from tests.backends.under_test import UnderTest
from tests.goldens.golden import NAMES, read
from tests.goldens.vision import read_vision
from tests.models.test_goldens import PREFILL_THEN_DECODE, in_chunks, packed
from tests.models.test_pixtral import encoder, spliced
from tests.stored.machine import numpy_kind

STORED = Path(__file__).parents[1] / "stored" / "v0_1" / "golden_logits.json"
SMALL_CACHES = ("mistral_window", "ministral3_yarn1_tied", "qwen3", "large3")


@pytest.fixture(scope="module")
def stored() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Backend to golden to way of computing to digest."""
    found: dict[str, dict[str, dict[str, str]]] = json.loads(STORED.read_text())
    return found


@pytest.mark.parametrize("name", [*NAMES, "vision"])
def test_logits_have_the_bits_of_version_0_1(
        under_test: UnderTest, name: str, stored: Mapping[str, Mapping[str, Mapping[str, str]]]) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("recorded on x86-64 only")
    if under_test.name not in stored:
        pytest.skip(f"nothing was recorded on {under_test.name}")
    if name not in stored[under_test.name]:
        pytest.skip("no golden of version 0.1")
    if not under_test.is_native and stored["numpy"]["reference"] != numpy_kind():
        pytest.skip(f"recorded with {stored['numpy']['reference']}, this is {numpy_kind()}")
    assert digests(under_test, name) == stored[under_test.name][name]


def digests(under_test: UnderTest, name: str) -> dict[str, str]:
    """The SHA-256 of the logits (float32, little-endian, row by row) for each way of computing them."""
    if name == "vision":
        return _vision_digests(under_test)
    found = {}
    for layout in ("half", "interleaved"):
        golden = read(name, layout)
        weights = place(golden.weights, under_test.backend.place)
        whole = packed(golden.tokens, 0, len(golden.tokens), cached=False)
        found[f"{layout}, whole"] = _digest(decoder.forward(under_test.ops, golden.config, weights, whole))
        found[f"{layout}, in chunks"] = _digest(in_chunks(under_test, golden, PREFILL_THEN_DECODE, "f32"))
    if name in SMALL_CACHES:
        for format in ("f16", "q8", "q4"):
            found[f"in chunks, cache {format}"] = _digest(in_chunks(under_test, golden, PREFILL_THEN_DECODE, format))
    return found


def _vision_digests(under_test: UnderTest) -> dict[str, str]:
    golden = read_vision()
    features = np.concatenate(encoder(golden, under_test).encode(golden.images))
    weights = place(golden.text.weights, under_test.backend.place)
    logits = decoder.forward(under_test.ops, golden.text.config, weights, spliced(golden, features))
    return {"features": _digest(features), "logits": _digest(logits)}


def _digest(numbers: Array) -> str:
    assert numbers.dtype == np.float32
    return hashlib.sha256(np.ascontiguousarray(numbers).astype("<f4").tobytes()).hexdigest()
