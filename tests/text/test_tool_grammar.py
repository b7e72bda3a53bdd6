"""The tool grammars in llguidance: what a model may write with each `tool_choice`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
from llguidance import LLMatcher

from brise.errors import RequestError
from brise.text import tool_grammar as grammars
from brise.text.answer_format import AnswerFormat
from brise.text.inputs import Grammar
from brise.text.tokenizer import Tokenizer
from tests.text.trie import trie
from tests.text.vocabulary import tokenizer

CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/Name"}}, "required": ["city"],
        "additionalProperties": False, "$defs": {"Name": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}},
         {"type": "function", "function": {"name": "now"}}]
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
WRONG = WEATHER.replace("weather", "whether")
ONE = {"type": "function", "function": {"name": "now"}}
TINY, WITH_TOKEN = tokenizer(), tokenizer(user_defined=("<tool_call>", "</tool_call>"))


def tool_grammar(tools: Sequence[Mapping[str, object]], choice: str | dict[str, object], *, parallel: bool = True,
                 tok: Tokenizer = TINY) -> Grammar | None:
    return grammars.tool_grammar(tools, choice, AnswerFormat.of(tok, "tags"), parallel=parallel)


@pytest.mark.parametrize(("choice", "parallel", "accepted", "refused"), [
    ("auto", True, ["", "hi <b>", WEATHER, f"hi {NOW} and {WEATHER}\n", "<tool_cal"], [WRONG, "<tool_call> hi"]),
    ("auto", False, ["hi", f"hi {NOW}"], [f"{NOW}\n{NOW}", WRONG]),
    ("required", True, [WEATHER, f"{NOW}\n{WEATHER}", f"{NOW}\n"], [f"{NOW}\n\n", "", "hi", WRONG, f"hi {NOW}"]),
    ("required", False, [WEATHER], [f"{NOW}\n{WEATHER}"]),
    (ONE, True, [NOW], ["hi", WEATHER, f"{NOW}\n{NOW}"]), ("now", True, [NOW], [WEATHER])])
def test_each_choice_allows_what_it_says(choice: str | dict[str, object], parallel: bool, accepted: list[str],
                                         refused: list[str]) -> None:
    grammar = tool_grammar(TOOLS, choice, parallel=parallel)
    assert grammar is not None and grammar.kind == "lark"
    assert [text for text in accepted if not allows(grammar.text, TINY, text)] == []
    assert [text for text in refused if allows(grammar.text, TINY, text)] == []


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_the_tags_may_be_tokens_of_their_own(choice: str) -> None:
    grammar = tool_grammar(TOOLS, choice, tok=WITH_TOKEN)
    assert grammar is not None and allows(grammar.text, WITH_TOKEN, WEATHER, parse_control=True)
    assert not allows(grammar.text, WITH_TOKEN, WRONG, parse_control=True)
    assert allows(grammar.text, WITH_TOKEN, WRONG) is (choice == "auto")  # letter by letter it is text


def test_arguments_follow_the_schema_and_pythons_spacing() -> None:
    grammar = tool_grammar(TOOLS, "required")
    assert grammar is not None
    for wrong in ('{"city": 5}', "{}", '{"town": "x"}', '{"city":"x"}', '{ "city": "x"}'):
        assert not allows(grammar.text, TINY, WEATHER.replace('{"city": "Paris"}', wrong))


def test_with_a_schema_the_answer_is_a_call_or_follows_it() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"],
              "additionalProperties": False}
    grammar = grammars.tool_grammar(TOOLS, "auto", AnswerFormat.of(TINY, "tags"), answer=schema)
    assert grammar is not None
    for text in ('{"age": 5}', WEATHER, f"{WEATHER}\n{NOW}"):
        assert allows(grammar.text, TINY, text), text
    for text in ('{"age": 5}', '{"age":5}', '{\n  "age": 5\n}', WEATHER):
        assert allows(grammar.free, TINY, text), text
    for text in ("hi", '{"name": 5}', WRONG, '{\n\n"age": 5}', '{  "age": 5}'):
        assert not allows(grammar.text, TINY, text), text


def test_what_cannot_be_enforced_is_left_out_and_named() -> None:
    tool = {"function": {"name": "f", "parameters": {"properties": {"n": {"type": "array", "uniqueItems": True}}}}}
    schemas = grammars.ToolSchemas()
    grammar = grammars.tool_grammar([tool], "required", AnswerFormat.of(TINY, "tags"), schemas=schemas)
    call = '<tool_call>\n{"name": "f", "arguments": {"n": [1, 1]}}\n</tool_call>'
    assert grammar is not None and allows(grammar.text, TINY, call)
    assert [str(each) for each in schemas.left_out["f"]] == ["properties.n.uniqueItems"]
    with pytest.raises(RequestError, match=r"tools\[0\].function.parameters has 'uniqueItems' at 'properties.n'"):
        grammars.tool_grammar([tool], "auto", AnswerFormat.of(TINY, "tags"), schemas=grammars.ToolSchemas({"f"}))
    assert grammars.tool_grammar([tool], "none", AnswerFormat.of(TINY, "tags"), schemas=grammars.ToolSchemas({"f"}))


def test_no_tools_need_no_grammar() -> None:
    assert tool_grammar([], "auto") is None and tool_grammar([], "none") is None


@pytest.mark.parametrize("tok", [TINY, WITH_TOKEN])
def test_none_allows_all_but_calls(tok: Tokenizer) -> None:
    grammar = tool_grammar(TOOLS, "none", tok=tok)
    assert grammar is not None and all(allows(grammar.text, tok, text) for text in ("", "hi <tool_cal", "{}"))
    assert not allows(grammar.text, tok, f"hi {NOW}", parse_control=True)


@pytest.mark.parametrize("parameters", [
    {"type": "nope"}, {"type": "string"}, {"properties": 5}, {"properties": {"a": {"$ref": "http://x.y/z"}}},
    {"properties": {"a": {"$ref": "#/$defs/none"}}}, {"patternProperties": {"(": {}}}, "schema", [1]])
def test_a_schema_that_is_none_is_refused_by_name(parameters: object) -> None:
    bad = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(RequestError) as caught:
        tool_grammar([*TOOLS, bad], "auto")
    assert caught.value.param == "tools[2].function.parameters"


def test_a_choice_of_a_function_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="'nope'") as caught:
        tool_grammar(TOOLS, {"type": "function", "function": {"name": "nope"}})
    assert caught.value.param == "tool_choice"
    with pytest.raises(RequestError, match="no tools"):
        tool_grammar([], "required")


def test_a_name_is_quoted_whatever_it_is() -> None:
    grammar = tool_grammar([{"function": {"name": 'a"\\b'}}], "required")
    call = json.dumps({"name": 'a"\\b', "arguments": {}})
    assert grammar is not None and allows(grammar.text, TINY, f"<tool_call>\n{call}\n</tool_call>")


def allows(lark: str, tok: Tokenizer, text: str, *, parse_control: bool = False) -> bool:
    """Whether the grammar lets a model write the text and end there."""
    matcher = LLMatcher(trie(tok), LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    ids = tok.encode(text, parse_control=parse_control)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


def test_arguments_come_in_any_order_unless_the_function_is_strict() -> None:
    properties = {"a": {"type": "string"}, "b": {"type": "string"}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "properties": properties, "required": ["a", "b"]}}}]
    loose, strict = (grammars.tool_grammar(
        tools, "required", AnswerFormat.of(TINY, "tags"), schemas=grammars.ToolSchemas(strict=names))
        for names in ((), ("f",)))
    assert loose is not None and strict is not None
    for arguments, in_order in (('{"a": "1", "b": "2"}', True), ('{"b": "2", "a": "1"}', False)):
        call = f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'
        assert allows(loose.text, TINY, call)
        assert allows(strict.text, TINY, call) is in_order
