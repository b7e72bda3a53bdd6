"""JSON from strangers: what is no JSON for us is refused before a field is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.errors import RequestError
from brise.text.json_text import MAX_DEPTH, parse_json

SCALARS = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
           | st.text())
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@pytest.mark.parametrize(("body", "message"), [
    (b"", "not JSON"), (b"{", "not JSON"), (b"\xff", "not UTF-8: byte 0"), (b"{} {}", "not JSON"),
    (b'{"a": NaN}', "NaN"), (b'{"a": -Infinity}', "Infinity"), (b'{"a": 1e999}', "out of the range"),
    (b'{"a": "\\ud800"}', "surrogate"), (b'{"\\udc00": 1}', "surrogate"),
    (b'{"a": 1, "a": 2}', "given twice"),
    (b"9" * 5000, "not JSON"), (b"[" * 100_000, "nested deeper"), (b"[" * 200 + b"]" * 200, "nested deeper"),
    (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper")])
def test_what_is_no_json_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_json(body)


def test_depth_up_to_the_limit_is_read() -> None:
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not None


@given(JSON)
def test_json_is_read_as_it_is(value: object) -> None:
    text = json.dumps(value).encode()
    try:
        assert parse_json(text) == value
    except RequestError as error:
        assert "surrogate" in str(error)


@given(st.binary())
def test_any_bytes_are_json_or_a_request_error(body: bytes) -> None:
    try:
        parse_json(body)
    except RequestError as error:
        assert error.code == "invalid_json"
