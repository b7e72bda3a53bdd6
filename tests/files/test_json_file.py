"""JSON of a checkpoint: an object, bounded, and no key twice, whatever the number of keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.errors import CheckpointError
from brise.files.json_file import MAX_JSON_BYTES, parse_json, read_json


@pytest.mark.parametrize("count", [2, 200_000])  # 200,000 took hours while every key was compared with all before it
def test_a_key_that_stands_twice_is_named(count: int) -> None:
    keys = ",".join(f'"k{index}": 0' for index in range(count))
    with pytest.raises(CheckpointError, match=f"a key of x is 'k{count - 1}', allowed is a key that"):
        parse_json(f'{{{keys},"k{count - 1}": 1}}'.encode(), "x")


def test_a_key_may_stand_in_two_objects() -> None:
    assert parse_json(b'{"a": {"a": 1}, "b": [{"a": 2}, {"a": 3}]}', "x")["a"] == {"a": 1}


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"a": NaN}', b'{"a": Infinity}', b"\xff{}", b"[" * 100_000, b""])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(CheckpointError, match="x"):
        parse_json(text, "x")


def test_a_file_over_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"{}" + b" " * MAX_JSON_BYTES)
    with pytest.raises(CheckpointError, match=r"size of x\.json"):
        read_json(tmp_path / "x.json")
