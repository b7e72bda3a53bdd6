"""Whatever happens to a file's bytes: it opens, or it is refused with our own error, in little memory."""

from __future__ import annotations

import contextlib
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.checkpoint.gguf.file import StringArray, Value, open_gguf
from brise.checkpoint.gguf.read_model import read_config, read_weights
from brise.errors import CheckpointError, UnsupportedError
from brise.models.rope import frequencies
from brise.models.weights import Quant
from brise.quant.dequantize import dequantize
from tests.checkpoint import raw_gguf as raw
from tests.checkpoint.make_gguf import write_tiny
from tests.profiles import examples

# The file has 1 KB; the error, the views and Python's own objects stay far under this.
MEMORY_LIMIT = 1 << 20


def small_model() -> bytes:
    """A tiny Ministral 3 without its tokenizer, so that most of the header's bytes matter to the config."""
    with tempfile.TemporaryDirectory() as folder:
        return write_tiny(Path(folder) / "m.gguf", "mistral3", format="Q4_0", vocab=8,
                          tokenizer=False).read_bytes()


SMALL, MODEL = raw.small_valid_file(), small_model()
MODEL_HEADER = MODEL.rindex(b"output_norm.weight") + 18 + 4 + 8 + 4 + 8
INTERESTING = st.sampled_from([b"\0", b"\1", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\xff" * 8, b"\0" * 8,
                               (1 << 60).to_bytes(8, "little"), (1 << 31).to_bytes(4, "little")])
BYTES = st.one_of(INTERESTING, st.binary(min_size=1, max_size=8))
CHANGES = st.lists(st.tuples(st.integers(0, 1 << 16), BYTES), min_size=1, max_size=4)


@settings(max_examples=examples(400))
@given(CHANGES)
def test_overwritten_bytes(changes: list[tuple[int, bytes]]) -> None:
    read_all(overwritten(SMALL, changes, len(SMALL)))


@settings(max_examples=examples(200))
@given(st.integers(0, len(SMALL)), st.binary(max_size=64), st.integers(0, 32))
def test_bytes_cut_out_and_put_in(position: int, inserted: bytes, removed: int) -> None:
    read_all(SMALL[:position] + inserted + SMALL[position + removed:])


def test_every_truncation() -> None:
    for length in range(len(SMALL) - 28):  # the last 28 bytes are padding, which some writers leave out
        assert not read_all(SMALL[:length], check_memory=False), length


@settings(max_examples=examples(100))
@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic(data: bytes) -> None:
    read_all(b"GGUF\3\0\0\0" + data)


@settings(max_examples=examples(300))
@given(CHANGES)
def test_overwritten_bytes_of_a_model_header(changes: list[tuple[int, bytes]]) -> None:
    with written(overwritten(MODEL, changes, MODEL_HEADER)) as path, refusals(), open_gguf(path) as file:
        config = read_config(file)
        frequencies(config.rope)
        read_weights(file, config)


@settings(max_examples=examples(50))
@given(st.binary(min_size=1, max_size=40), st.integers(0, 1 << 16))
def test_any_blocks_are_dequantised_without_a_warning(data: bytes, position: int) -> None:
    changed = overwritten(MODEL, [(position, data)], len(MODEL), first=MODEL_HEADER + 64)
    with written(changed) as path, open_gguf(path) as file:
        weight = read_weights(file, read_config(file)).tok_embeddings
        assert isinstance(weight, Quant)
        assert dequantize(weight.format, weight.data, weight.shape[1]).shape == weight.shape


def overwritten(data: bytes, changes: list[tuple[int, bytes]], end: int, first: int = 0) -> bytes:
    out = bytearray(data)
    for position, new in changes:
        start = first + position % (end - first)
        out[start:start + len(new)] = new[:len(out) - start]
    return bytes(out)


def read_all(data: bytes, *, check_memory: bool = True) -> bool:
    """Opens the file and touches all that it says; False if it was refused."""
    if check_memory:
        tracemalloc.start()
    try:
        with written(data) as path, open_gguf(path) as file:
            for value in file.metadata.values():
                touch(value)
            for name in file.tensors:
                touch(file.array(name))
                file.forget(name)
        return True
    except (CheckpointError, UnsupportedError) as error:
        assert str(error)
        return False
    finally:
        if check_memory:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < MEMORY_LIMIT


def touch(value: Value) -> None:
    match value:
        case StringArray():
            assert len(list(value)) == len(value)
        case np.ndarray():
            value.tobytes()
        case tuple():
            for part in value:
                touch(part)


@contextlib.contextmanager
def written(data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.gguf"
        path.write_bytes(data)
        yield path


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    try:
        yield
    except (CheckpointError, UnsupportedError) as error:
        assert str(error)
