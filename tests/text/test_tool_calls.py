"""Tool calls in text: found however the text is cut, and what is none stays text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.text.answer_events import Parsed, ParsedCallArguments, ParsedCallStart, ParsedText
from brise.text.tool_calls import ToolCallParser, tool_system_prompt

CALL = '<tool_call>\n{"name": "w", "arguments": {"city": "São \\"P\\" {}"}}\n</tool_call>'
PARSED = [ParsedCallStart("w"), ParsedCallArguments('{"city": "São \\"P\\" {}"}')]
NO_CALLS = (
    '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>', "<tool_call>what</tool_call>",
    '<tool_call>{"name": "w", "arguments": {]}</tool_call>', '<tool_call>{"name": "w", "arguments": [1]}</tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>{"name": 5}</tool_call>', "<tool_call></tool_call>",
    '<tool_call>{"name": "w"} and more</tool_call>', '<tool_call>{"name": "w", "argu', "<tool_call", "</tool_call>",
    '<tool_call>{"name": "w", "arguments": {"a": NaN}}</tool_call>', '<tool_call>[{"name": "w"}]</tool_call>',
    '<tool_call>{"name": "w", "arguments": {"a": 1e999}}</tool_call>',
    '<tool_call>' + '{"a":' * 3000 + "1" + "}" * 3000 + "</tool_call>")


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_comes_back_as_text(text: str) -> None:
    assert parse([f"a {text} b"]) == [ParsedText(f"a {text} b")]


@given(st.lists(st.sampled_from(["hi ", "\n", "<tool", CALL, *NO_CALLS[:8]]), max_size=5).map("".join), st.data())
def test_any_cutting_gives_the_same(text: str, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert parse(pieces) == parse([text]) == parse(list(text))


def test_calls_in_a_row_with_text_around() -> None:
    assert parse([f"Well.\n{CALL}\n{CALL} ok"]) == [
        ParsedText("Well.\n"), *PARSED, ParsedText("\n"), *PARSED, ParsedText(" ok")]


def test_text_is_not_held_longer_than_needed() -> None:
    parser = ToolCallParser({"w"})
    assert parser.push("a <b> <tool") == [ParsedText("a <b> ")]
    assert parser.push("box> <tool_call> no") == [ParsedText("<toolbox> <tool_call> no")]


def test_a_call_is_out_as_soon_as_it_is_closed() -> None:
    parser = ToolCallParser({"w"})
    assert parser.push(CALL[:-1]) == [] and parser.push(CALL[-1]) == PARSED and parser.finish() == []


def test_a_closing_tag_within_a_string_is_no_end() -> None:
    arguments = {"code": "</tool_call><tool_call>\\"}
    text = json.dumps({"name": "w", "arguments": arguments})
    assert parse([f"<tool_call>{text}</tool_call>"]) == [
        ParsedCallStart("w"), ParsedCallArguments(json.dumps(arguments))]


@pytest.mark.parametrize("end", ["", "\n", "\n</tool"])
def test_a_whole_call_that_is_not_closed_counts(end: str) -> None:
    assert parse([CALL.removesuffix("\n</tool_call>") + end]) == PARSED


def test_a_call_after_a_broken_one_is_found() -> None:
    assert parse(["<tool_call>\n" + CALL]) == [ParsedText("<tool_call>\n"), *PARSED]


@pytest.mark.parametrize(("arguments", "written"), [
    ('"{\\"a\\": 1}"', '{"a": 1}'), ("{}", "{}"), ('{"a": "\\ud800"}', '{"a": "\\ud800"}')])
def test_arguments_are_written_as_json_that_can_be_sent(arguments: str, written: str) -> None:
    call = f'<tool_call>{{"name": "w", "arguments": {arguments}}}</tool_call>'
    assert parse([call]) == [ParsedCallStart("w"), ParsedCallArguments(written)]


def test_without_names_any_function_will_do() -> None:
    assert ToolCallParser().push(CALL.replace('"w"', '"v"'))[0] == ParsedCallStart("v")


def test_the_prompt_holds_every_tool_and_shows_the_format() -> None:
    tools = [{"type": "function", "function": {"name": name, "description": "é"}} for name in ("f", "g")]
    prompt = tool_system_prompt(tools)
    lines = prompt.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in lines] == tools
    assert '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' in prompt


def parse(pieces: list[str]) -> list[Parsed]:
    """All that a parser finds, neighbouring text joined."""
    parser = ToolCallParser({"w"})
    joined: list[Parsed] = []
    for item in [item for piece in pieces for item in parser.push(piece)] + parser.finish():
        if isinstance(item, ParsedText) and joined and isinstance(joined[-1], ParsedText):
            item = ParsedText(joined.pop().text + item.text)
        joined.append(item)
    return joined
