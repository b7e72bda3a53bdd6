"""Whatever happens to a folder's bytes: it opens, or it is refused with our own error, in little memory."""

from __future__ import annotations

import contextlib
import json
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.safetensors.file import open_safetensors
from brise.checkpoint.safetensors.read_hf_config import read_config
from brise.checkpoint.safetensors.read_mistral_params import read_params
from brise.errors import CheckpointError, UnsupportedError
from brise.models.rope import frequencies
from brise.models.weights import Dense, Quant, Stack, Stored, Weight, place
from tests.checkpoint import make_folder as make
from tests.profiles import examples

MEMORY_LIMIT = 1 << 20  # the header has 4 KB


def small_file() -> bytes:
    """Two layers of FP8 with scales, tiny."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.safetensors"
        make.write_safetensors(path, {
            "a.weight": ("F8_E4M3", np.full((4, 6), 0x38, np.uint8)), "a.weight_scale_inv": ("F32", np.ones((1, 1))),
            "b.weight": ("BF16", np.ones((3, 5), np.float32)), "c": ("I64", np.arange(3))})
        return path.read_bytes()


SMALL = small_file()
HEADER = 8 + int.from_bytes(SMALL[:8], "little")
MODEL = make.tiny("ministral3_yarn0_tied")
LARGE3 = make.tiny("large3")
INTERESTING = st.sampled_from([b"\0", b"\xff", b'"', b"{", b"}", b"]", b"0", b"9" * 30, b"-1", b"1e9", b"null", b"[]"])
BYTES = st.one_of(INTERESTING, st.binary(min_size=1, max_size=8))
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), BYTES), min_size=1, max_size=4)
NUMBERS = st.one_of(st.integers(-2, 300), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
                    st.sampled_from([0, 1 << 31, 1 << 64, -1, 0.5]))
TEXT = st.text(max_size=8)
VALUES = st.recursive(st.one_of(NUMBERS, st.none(), st.booleans(), TEXT),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
                      max_leaves=4)


@settings(max_examples=examples(400))
@given(CHANGES)
def test_overwritten_bytes_of_a_header(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(SMALL)
    for position, new in changes:
        start = position % HEADER
        data[start:start + len(new)] = new
    read_all(bytes(data))


@settings(max_examples=examples(200))
@given(st.integers(0, len(SMALL)), st.binary(max_size=64), st.integers(0, 32))
def test_bytes_cut_out_and_put_in(position: int, inserted: bytes, removed: int) -> None:
    read_all(SMALL[:position] + inserted + SMALL[position + removed:])


def test_every_truncation() -> None:
    for length in range(len(SMALL)):
        assert not read_all(SMALL[:length], check_memory=False), length


@settings(max_examples=examples(200))
@given(st.text(alphabet='{}[]",:0123456789abcdeshptyp_ofF.-', max_size=200))
def test_any_header(text: str) -> None:
    body = text.encode()
    read_all(len(body).to_bytes(8, "little") + body)


@settings(max_examples=examples(400))
@given(st.data())
def test_any_value_in_a_config(data: st.DataObject) -> None:
    """Every key of a config.json, one or two at a time; what is accepted has frequencies."""
    model = data.draw(st.sampled_from([MODEL, LARGE3]))
    config = make.hf_config(model, is_wrapped=data.draw(st.booleans()))
    change(data, config)
    with refusals():
        frequencies(read_config(config).config.rope)


@settings(max_examples=examples(400))
@given(st.data())
def test_any_value_in_params(data: st.DataObject) -> None:
    params = make.params(data.draw(st.sampled_from([MODEL, LARGE3, make.tiny("vision")])))
    change(data, params)
    with refusals():
        frequencies(read_params(params).config.rope)


@settings(max_examples=examples(60))
@given(st.data())
def test_any_change_of_a_checkpoint(data: st.DataObject) -> None:
    """Config and tensors that do not fit each other: an error, or weights whose rows have their shape."""
    config = make.hf_config(MODEL, is_wrapped=False)
    change(data, config)
    files = make.hf_tensors(MODEL, dtype="BF16")
    name = data.draw(st.sampled_from(sorted(files)))
    shape = tuple(data.draw(st.lists(st.integers(0, 97), min_size=0, max_size=3)))
    files[name] = (data.draw(st.sampled_from(["F32", "U8", "F8_E4M3", "I64"])), np.zeros(shape, np.uint8))
    with tempfile.TemporaryDirectory() as folder, refusals():
        make.write_folder(Path(folder), "model", files)
        (Path(folder) / "config.json").write_text(json.dumps(config))
        place(open_checkpoint(folder).weights(), touch)


def change(data: st.DataObject, values: dict[str, Any]) -> None:
    """Puts any value somewhere into nested objects."""
    for _ in range(data.draw(st.integers(1, 2))):
        target = values
        while True:
            key = data.draw(st.sampled_from([*target, "new"]))
            if isinstance(target.get(key), dict) and data.draw(st.booleans()):
                target = target[key]
                continue
            target[key] = data.draw(VALUES)
            break


def touch(name: str, weight: Weight) -> Weight:
    match weight:
        case Dense() | Quant():
            assert weight.data.shape[0] == weight.shape[0], name
        case Stored():
            assert weight.rows(0, 1).shape == (1, weight.shape[1]), name
        case Stack():
            for matrix in weight.matrices:
                touch(name, matrix)
    return weight


def read_all(data: bytes, *, check_memory: bool = True) -> bool:
    """Opens the file and touches all that it says; False if it was refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.safetensors"
        path.write_bytes(data)
        if check_memory:
            tracemalloc.start()
        try:
            file = open_safetensors(path)
            for name, tensor in file.tensors.items():
                assert file.array(name).shape == tensor.shape
                file.array(name).tobytes()
            return True
        except (CheckpointError, UnsupportedError) as error:
            assert str(error)
            return False
        finally:
            if check_memory:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                assert peak < MEMORY_LIMIT


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    try:
        yield
    except (CheckpointError, UnsupportedError) as error:
        assert str(error)
