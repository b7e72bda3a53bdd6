"""The grammars of Mistral's calls: control tokens where they belong and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from llguidance import LLMatcher, LLTokenizer

from brise.text.answer_format import AnswerFormat, CallStyle
from brise.text.mistral import MistralTokenizer
from brise.text.tool_grammar import tool_grammar
from tests.text import tekken
from tests.text.test_tool_grammar import ONE, TOOLS
from tests.text.trie import trie

WEATHER, NOW = '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}', "[TOOL_CALLS]now[ARGS]{}"
IN_LIST = {WEATHER: '{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}',
           NOW: '{"name": "now", "arguments": {}}'}
WRONG = WEATHER.replace("weather", "whether")


@pytest.fixture(scope="module")
def tok(tmp_path_factory: pytest.TempPathFactory) -> MistralTokenizer:
    return MistralTokenizer(tekken.write(tmp_path_factory.mktemp("v13")))


@pytest.fixture(scope="module")
def vocabulary(tok: MistralTokenizer) -> LLTokenizer:
    return trie(tok)


def allows(tok: MistralTokenizer, vocabulary: LLTokenizer, text: str, choice: object, style: CallStyle = "named",
           **more: bool) -> bool:
    grammar = tool_grammar(TOOLS, choice, AnswerFormat.of(tok, style), **more)  # type: ignore[arg-type]
    assert grammar is not None
    matcher = LLMatcher(vocabulary, LLMatcher.grammar_from_lark(grammar.text))
    assert not matcher.is_error(), matcher.get_error()
    ids = tok.encode(text, parse_control=True)
    return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.mark.parametrize(("choice", "parallel", "accepted", "refused"), [
    ("auto", True, ["", "hi", NOW, f"hi {NOW}{WEATHER}", f"[THINK]hm[/THINK]hi {NOW}", "[THINK]hm[/THINK]"],
     [WRONG, f"{NOW}hi", "[THINK]hm", "[ARGS]", "[INST]", f"[THINK]{NOW}[/THINK]"]),
    ("auto", False, ["hi", f"hi {NOW}"], [f"{NOW}{NOW}"]),
    ("required", True, [NOW, f"{WEATHER}{NOW}", f"[THINK]hm[/THINK]{NOW}"], ["", "hi", f"hi {NOW}", WRONG]),
    ("required", False, [NOW], [f"{NOW}{NOW}"]),
    (ONE, True, [NOW, f"[THINK]hm[/THINK]{NOW}"], [WEATHER, f"{NOW}{NOW}", ""]),
    ("none", True, ["", "hi [", "[THINK]hm[/THINK]hi"], [NOW, f"hi {NOW}"])])
def test_each_choice_allows_what_it_says(tok: MistralTokenizer, vocabulary: LLTokenizer, choice: object, parallel: bool,
                                         accepted: list[str], refused: list[str]) -> None:
    assert [text for text in accepted if not allows(tok, vocabulary, text, choice, parallel=parallel)] == []
    assert [text for text in refused if allows(tok, vocabulary, text, choice, parallel=parallel)] == []


@pytest.mark.parametrize(("choice", "parallel", "accepted", "refused"), [
    ("auto", True, ["", "hi", [NOW], [NOW, WEATHER]], ["[TOOL_CALLS][]", "[TOOL_CALLS]", WRONG]),
    ("required", False, [[NOW], [WEATHER]], [[NOW, NOW], "hi", ""])])
def test_the_same_as_a_list(tok: MistralTokenizer, vocabulary: LLTokenizer, choice: object, parallel: bool,
                            accepted: list[str | list[str]], refused: list[str | list[str]]) -> None:
    def text_of(calls: str | list[str]) -> str:
        return calls if isinstance(calls, str) else f"[TOOL_CALLS][{', '.join(IN_LIST[call] for call in calls)}]"

    verdicts = [[allows(tok, vocabulary, text_of(calls), choice, "list", parallel=parallel) for calls in group]
                for group in (accepted, refused)]
    assert all(verdicts[0]) and not any(verdicts[1])


def test_an_id_may_stand_between_name_and_arguments(tok: MistralTokenizer, vocabulary: LLTokenizer) -> None:
    call = NOW.replace("[ARGS]", "[CALL_ID]abcdefghi[ARGS]")
    assert allows(tok, vocabulary, call, "required")
    assert not allows(tok, vocabulary, call.replace("abcdefghi", "call_1"), "required")


def test_thinking_that_the_prompt_began_must_end(tok: MistralTokenizer, vocabulary: LLTokenizer) -> None:
    for text, allowed in ((f"hm[/THINK]{NOW}", True), (NOW, False), (f"[THINK]hm[/THINK]{NOW}", False)):
        assert allows(tok, vocabulary, text, "required", is_thinking=True) is allowed


def test_arguments_follow_the_schema_and_pythons_spacing(tok: MistralTokenizer, vocabulary: LLTokenizer) -> None:
    for wrong in ('{"city": 5}', "{}", '{"town": "x"}', '{"city":"x"}', '{ "city": "x"}', '"[ARGS]"'):
        assert not allows(tok, vocabulary, WEATHER.replace('{"city": "Paris"}', wrong), "required")


def test_without_thinking_tokens_nothing_is_thought(tmp_path: Path) -> None:
    tok = MistralTokenizer(tekken.write(tmp_path, control=tekken.control_names("v13", can_think=False)))
    assert not AnswerFormat.of(tok, "named").can_think and allows(tok, trie(tok), NOW, "required")
