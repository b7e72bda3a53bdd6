"""What a stream lets out does not depend on how the bytes come, and is never half a character."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.errors import RequestError
from brise.text.stream import TextStream

DATA = st.one_of(st.binary(max_size=40), st.text("abé🙂\n", max_size=40).map(str.encode))
STOPS = st.lists(st.text("abé🙂\n", min_size=1, max_size=4), max_size=3)


@given(DATA, STOPS, st.data())
def test_any_cutting_gives_the_text_up_to_the_first_stop(data: bytes, stops: list[str], draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=8)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(data)  # without half a character at the end
    expected, stopped = cut(whole, stops)
    stream = TextStream(stops)
    assert "".join([*map(stream.push, pieces), stream.finish()]) == expected
    assert stream.stopped == stopped


@given(st.text("abé🙂", max_size=20))
def test_what_is_out_is_a_beginning_of_the_text(text: str) -> None:
    stream, out = TextStream(), ""
    for byte in text.encode():
        out += stream.push(bytes([byte]))
        assert text.startswith(out)
    assert out == text  # without stop strings nothing whole is held


def test_a_possible_stop_is_held_until_it_is_none() -> None:
    stream = TextStream(["\nUser:"])
    assert [stream.push(piece) for piece in (b"hi\nUs", b"e", b"d")] == ["hi", "", "\nUsed"]


def test_after_a_stop_nothing_comes() -> None:
    stream = TextStream(["END", "ND"])
    assert [stream.push(b"a E"), stream.push(b"ND b"), stream.push(b"c"), stream.finish()] == ["a ", "", "", ""]
    assert stream.stopped == "END"


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    stream = TextStream()
    assert (stream.push("é".encode()[:1]), stream.finish()) == ("", "")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        TextStream([""])


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is whole first, found the slow way."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            longest = max(ended, key=len)
            return text[:end - len(longest)], longest
    return text, None
