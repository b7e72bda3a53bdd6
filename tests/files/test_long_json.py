"""Long JSON is read in short steps, and says the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brise.files import long_json
from tests.text.test_json_text import JSON

STRINGS = st.lists(st.sampled_from(
    ["a", "é", "\\n", '\\"', "\\\\", "\\u00e9", "\\ud83d", "\\ude00", "\\ud83d\\ude00", "\\u12", "\\x", '"', "\n",
     "x" * 5000]), max_size=20).map("".join)


def outcome(decoder: json.JSONDecoder, text: str) -> object:
    try:
        return decoder.decode(text)
    except ValueError as error:
        return str(error)


@given(JSON)
def test_values_are_the_same(value: object) -> None:
    assert long_json.decoder(True).decode(json.dumps(value)) == long_json.decoder(False).decode(json.dumps(value))


@given(STRINGS)
@example("\\n" * 300 + "\\ud83d\\ude00")
@example("\\n" * 255 + "\\ud83d\\ude00" * 300)
def test_strings_and_what_is_wrong_with_them_are_the_same(content: str) -> None:
    text = f'["{content}", 1]'
    assert outcome(long_json.decoder(True), text) == outcome(long_json.decoder(False), text)


@pytest.mark.parametrize("at", [0, long_json.STEP_BYTES - 1, long_json.STEP_BYTES + 1])
def test_text_is_decoded_in_steps(at: int) -> None:
    text = "a" * at + "é" + "b" * long_json.STEP_BYTES
    assert long_json.decoded(text.encode()) == text
    with pytest.raises(UnicodeDecodeError) as caught:
        long_json.decoded(text.encode().replace("é".encode(), b"\xff"))
    assert caught.value.start == at
    assert long_json.decoded(text.encode() + b"\xed\xa0\x80", "surrogatepass")[-1] == "\ud800"


@pytest.mark.parametrize(("data", "is_long"), [
    (b"[" + b"[]," * 3000 + b"1]", True), (b'"' + b"a" * (300 << 10) + b'"', True),
    (b'"' + b"a word, and another one " * 400 + b'"', False)])
def test_what_is_long(data: bytes, is_long: bool) -> None:
    assert long_json.is_long(data) is is_long
