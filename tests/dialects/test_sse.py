"""Streams are split as WHATWG HTML, 9.2.5 and 9.2.6, says, however they are cut into pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brise.dialects import sse
from brise.dialects.sse import Splitter
from tests.cpu_time import cpu_s
from tests.profiles import examples

# What tells lines, fields and events apart, and what only looks like it.
PIECES = ["\n", "\r", "\r\n", "\n\n", "\r\r", "\r\n\r\n", "data", "data:", "data: ", "data:  ", "event:", "event: e",
          "id: 1", "retry: 3", ":", ": comment", "{}", "x", " ", "\ufeff", "é", "\u2028", "\x85", "\x0c", "\x00",
          "datax: 1"]
STREAMS = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)


def by_whatwg(stream: str) -> list[tuple[str, str]]:
    """The algorithm character by character, as it is written: name and data of every event that is dispatched."""
    stream = stream.removeprefix("\ufeff")
    lines, line, at = list[str](), "", 0
    while at < len(stream):
        if stream[at] in "\r\n":
            lines.append(line)
            line = ""
            at += 2 if stream[at:at + 2] == "\r\n" else 1
        else:
            line += stream[at]
            at += 1
    dispatched, data, name = list[tuple[str, str]](), "", ""
    for line in lines:  # what follows the last line's end is discarded
        if line == "":
            if data != "":
                dispatched.append((name, data[:-1] if data.endswith("\n") else data))
            data, name = "", ""
        elif not line.startswith(":"):
            colon = line.find(":")
            field, value = (line, "") if colon < 0 else (line[:colon], line[colon + 1:])
            value = value[1:] if value[:1] == " " else value
            if field == "data":
                data += value + "\n"
            elif field == "event":
                name = value
    return dispatched


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted(cut % (len(stream) + 1) for cut in cuts)
    return [stream[begin:end] for begin, end in zip([0, *ends], [*ends, len(stream)], strict=True)]


@settings(max_examples=examples(2000))
@given(STREAMS, st.lists(st.integers(0, 200), max_size=12))
@example("data: a\n\r\ndata: b\r\n\ndata: c\r\r", [9, 10])
@example("\ufeffdata: a\n\n\ufeffdata: b\n\n", [1, 2])
@example("data: a\r\r\ndata: b\r\n\r\n", [8, 9])
def test_the_events_are_those_of_the_algorithm(stream: str, cuts: list[int]) -> None:
    splitter, sent = Splitter(), stream.encode()
    blocks = [block for piece in pieces_of(sent, cuts) for block in splitter.push(piece)]
    expected = [(name, data) for name, data in by_whatwg(stream) if data.strip()]  # keep-alives say nothing
    assert [(block.event.name, block.event.data) for block in blocks if block.event is not None] == expected
    assert b"".join(block.data for block in blocks) + splitter.rest().data == sent


@settings(max_examples=examples(2000))
@given(STREAMS)
def test_an_event_leaves_with_the_byte_that_ends_its_empty_line(stream: str) -> None:
    splitter, sent, seen = Splitter(), stream.encode(), 0
    for end in range(1, len(sent) + 1):
        seen += sum(block.event is not None for block in splitter.push(sent[end - 1:end]))
        assert seen == sum(bool(data.strip()) for _, data in by_whatwg(sent[:end].decode("utf-8", "replace")))


@pytest.mark.parametrize(("stream", "data"), [
    (b"data: {}", ["{}"]), (b"data: {}\n\ndata: [DONE]", ["{}", "[DONE]"]), (b"data: {}\n\ndata: {\"a", ["{}"]),
    (b"data:\n\ndata\n\ndata: \n\n: c\n\ndata:{}\n\n", ["{}"]), (b"\xef\xbb\xbfdata: {}\n\n", ["{}"]),
    (b"data: {\ndata: }\n\n", ["{\n}"]), (b"event: ping\ndata:\n\n", [])])
def test_a_last_event_without_its_end_counts_if_it_can_be_read(stream: bytes, data: list[str]) -> None:
    assert [event.data for event in sse.events(stream)] == data


@pytest.mark.parametrize(("head", "media_type", "is_stream"), [
    (b"data: {}", b"application/json", True), (b": hi", b"", True), (b"event: x", b"text/plain", True),
    (b"\xef\xbb\xbfdata: {}", b"", True), (b'{"choices"', b"text/event-stream", False), (b" <html>", b"", False),
    (b"database", b"text/plain", False), (b"database", b"text/event-stream", True),
    (b"dat", b"text/event-stream", None), (b"", b"", None), (b"upstream error", b"", False)])
def test_the_first_bytes_say_whether_it_is_a_stream(head: bytes, media_type: bytes, is_stream: bool | None) -> None:
    assert sse.begins_stream(head, media_type) is is_stream


def test_a_long_event_in_many_pieces_takes_time_in_proportion_to_its_length() -> None:
    def seconds(number: int) -> float:
        splitter = Splitter()
        return cpu_s(lambda: [splitter.push(b"x" * 50) for _ in range(number)])

    assert seconds(80_000) < 20 * max(seconds(10_000), 0.002)


@settings(max_examples=examples(2000))
@given(st.lists(st.sampled_from([b"data:", b"data: ", b"event: ", b"event:", b"\n", b"\r\n", b"\r", b"\n\n", b"{}",
                                 b" ", b"\xe2\x82", b"\xc3\xa9", b"\xff", b"x", b":"]), max_size=12).map(b"".join))
@example(b"event: e\r\ndata: {}\r\n\r\n")
@example(b"event: e\xe2\ndata:  {}\xe2\x82\n\n")
@example(b"data: \n\n")
def test_usual_events_are_read_as_all_others_are(block: bytes) -> None:
    event, plain = sse._event(block), sse._plainly(block)
    assert (event and (event.name, event.data)) == (plain and (plain.name, plain.data))


@settings(max_examples=examples(1000))
@given(st.lists(st.sampled_from(["{", "}", "[", "]", '"a":', "1", ",", " ", "\n", "NaN", '"\\ud800"', "\ufeff", "1e999",
                                 "\x00"]), max_size=10).map("".join))
@example('{"a":1}')
@example('{"a":1} ')
@example('{"a":1}}')
@example("[" * 100_000)
@example('{"a":' * 100_000)
def test_data_are_read_as_json_reads_them(data: str) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    fields = sse.ServerSentEvent("", data).fields
    assert repr(fields) == repr(value if isinstance(value, dict) else None)
