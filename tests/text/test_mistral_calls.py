"""Mistral's calls and thinking in an answer: found however the text is cut, and what is none stays text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.text.answer_events import Parsed, ParsedCallArguments, ParsedCallStart, ParsedReasoning, ParsedText, joined
from brise.text.answer_format import AnswerFormat
from brise.text.mistral import MistralTokenizer
from brise.text.special_tokens import ARGS, CALL, CALL_ID, END_CALL, END_THINK, THINK
from brise.text.stream import TextStream
from tests.text import tekken
from tests.text.vocabulary import tokenizer

NAMES = ("weather", "now")
PARIS = '{"city": "S\\u00e3o \\"P\\" {}"}'
NAMED = f"{CALL}weather{ARGS}{PARIS}"
LIST = f'{CALL}[{{"name": "weather", "arguments": {PARIS}, "id": "abcdefghi"}}]'
WEATHER = [ParsedCallStart("weather"), ParsedCallArguments(PARIS)]
NOW = [ParsedCallStart("now"), ParsedCallArguments("{}")]
MISTRAL = ("[INST]", "[/INST]", "<s>", "</s>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")
QWEN = ("<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
FORMATS = {"named": AnswerFormat.of(tokenizer(control=MISTRAL), "named"),
           "list": AnswerFormat.of(tokenizer(control=MISTRAL), "list"),
           "tags": AnswerFormat.of(tokenizer(control=QWEN[:1], user_defined=QWEN[1:]), "tags")}
PIECES = ("weather", "now", "nowhere", "{", "}", '{"city": 1}', "[", "]", '"', "\\", ", ", "\n", " ", "text",
          '{"name": ', '"weather"', ', "arguments": ', PARIS, NAMED, LIST, f"{CALL}now{CALL_ID}abcdefghi{ARGS}{{}}",
          THINK, END_THINK, CALL, CALL_ID, ARGS, END_CALL, f'{CALL}\n{{"name": "now", "arguments": {{}}}}\n{END_CALL}')


def parse(kind: str, pieces: list[str], *, was_cut: bool = False, names: tuple[str, ...] = NAMES,
          is_thinking: bool = False) -> list[Parsed]:
    parser = FORMATS[kind].parser(names, is_thinking=is_thinking)
    return joined([item for piece in pieces for item in parser.push(piece)] + parser.finish(was_cut=was_cut))


@pytest.mark.parametrize("kind", FORMATS)
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join), st.booleans(), st.booleans(), st.data())
def test_any_cutting_gives_the_same_and_nothing_raises(kind: str, text: str, was_cut: bool, is_thinking: bool,
                                                       draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    one = parse(kind, [text], was_cut=was_cut, is_thinking=is_thinking)
    assert parse(kind, pieces, was_cut=was_cut, is_thinking=is_thinking) == one
    assert parse(kind, list(text), was_cut=was_cut, is_thinking=is_thinking) == one
    assert not any(sentinel in str(item) for item in one for sentinel in (CALL, ARGS, CALL_ID, THINK, END_THINK))


@pytest.mark.parametrize("kind", ["named", "list"])
@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join))
def test_without_tools_nothing_but_thinking_is_taken_out(kind: str, text: str) -> None:
    news = parse(kind, list(text), names=())
    assert all(isinstance(item, ParsedText | ParsedReasoning) for item in news)
    shown = text.translate({ord(sentinel): None for sentinel in (THINK, END_THINK)}).translate(FORMATS[kind].texts)
    assert "".join(item.text for item in news).replace("[THINK]", "").replace("[/THINK]", "") == shown


@pytest.mark.parametrize(("kind", "text", "parsed"), [
    ("named", NAMED, WEATHER), ("list", LIST, WEATHER),
    ("named", f"Well. {NAMED}{CALL}now{ARGS}{{}}", [ParsedText("Well. "), *WEATHER, *NOW]),
    ("named", f"{CALL}now{CALL_ID}abcdefghi{ARGS}{{}}", [ParsedCallStart("now", "abcdefghi"), NOW[1]]),
    ("named", f"{CALL} now\n{ARGS} {{}}", NOW), ("named", f"{NAMED}\nok", [*WEATHER, ParsedText("\nok")]),
    ("list", f'{CALL} [{{"name": "now", "arguments": {{}}}}, {LIST[2:]}', [*NOW, *WEATHER]),
    ("list", f'{CALL}[{{"arguments": {{}}, "name": "now"}}] ok', [*NOW, ParsedText(" ok")]),
    ("list", f'{CALL}[{{"name": "now", "arguments": "{{}}"}}]', NOW), ("list", f"{LIST[:-1]}", WEATHER)])
def test_calls_and_the_text_around(kind: str, text: str, parsed: list[Parsed]) -> None:
    assert parse(kind, [text]) == parsed


@pytest.mark.parametrize(("kind", "text"), [
    ("named", "[TOOL_CALLS]nowhere[ARGS]{}"), ("named", "[TOOL_CALLS]now"), ("named", "[TOOL_CALLS]now[ARGS]"),
    ("named", "[TOOL_CALLS][ARGS]{}"), ("named", "[TOOL_CALLS]now[ARGS]5"), ("named", "[ARGS]{} [CALL_ID]"),
    ("named", "[TOOL_CALLS]now[CALL_ID]a[CALL_ID]b[ARGS]{}"),
    ("list", '[TOOL_CALLS][{"name": "nowhere", "arguments": {}}]'),
    ("list", "[TOOL_CALLS]now{}"), ("list", "[TOOL_CALLS][]"), ("list", '[TOOL_CALLS][{"name": "now", "argu'),
    ("list", "[TOOL_CALLS][{}]"), ("list", "[TOOL_CALLS][5]"), ("list", "[TOOL_CALLS]"), ("list", "[TOOL_CALLS][")])
def test_what_is_no_call_comes_back_as_text(kind: str, text: str) -> None:
    marked = text.replace("[TOOL_CALLS]", CALL).replace("[ARGS]", ARGS).replace("[CALL_ID]", CALL_ID)
    assert parse(kind, [f"a {marked}"]) == [ParsedText(f"a {text}")]


def test_arguments_come_piece_by_piece_once_the_name_is_certain() -> None:
    parser = FORMATS["named"].parser(NAMES)
    assert [parser.push(piece) for piece in (CALL, "wea", "ther", ARGS, '{"ci', 'ty": ', '"Paris"}')] == [
        [], [], [], [], [ParsedCallStart("weather"), ParsedCallArguments('{"ci')], [ParsedCallArguments('ty": ')],
        [ParsedCallArguments('"Paris"}')]]
    parser = FORMATS["list"].parser(NAMES)
    assert [parser.push(piece) for piece in (CALL, '[{"name": "now", ', '"arguments": {', "}", ', "id": "x"}]')] == [
        [], [], [ParsedCallStart("now"), ParsedCallArguments("{")], [ParsedCallArguments("}")], []]


@pytest.mark.parametrize(("kind", "text", "parsed"), [
    ("named", f'{CALL}now{ARGS}{{"a', [NOW[0], ParsedCallArguments('{"a')]), ("named", f"{CALL}now{ARGS}", [NOW[0]]),
    ("named", f"{CALL}no", []), ("named", f"hm {CALL}", [ParsedText("hm ")]),
    ("named", f"{CALL}now{CALL_ID}abc", [NOW[0]]), ("named", f"{NAMED}{CALL}", WEATHER),
    ("named", f"{CALL}now{CALL_ID}abcdefghi{ARGS}", [ParsedCallStart("now", "abcdefghi")]),
    ("list", CALL, []), ("list", f"{CALL} [", []), ("list", f'{CALL}[{{"name": "no', []), ("list", f"{CALL}[]", [
        ParsedText("[TOOL_CALLS][]")]), ("list", f'{CALL}[{{"name": "other", "ar', [
            ParsedText('[TOOL_CALLS][{"name": "other", "ar')]),
    ("list", f'{CALL}[{{"name": "now", "argum', [NOW[0]]), ("list", f'{LIST[:-1]}, {{"na', WEATHER),
    ("list", f'{LIST[:-1]}, {{"name": "now"', [*WEATHER, NOW[0]]),
    ("list", f'{CALL}[{{"name": "now", "arguments": {{"a', [NOW[0], ParsedCallArguments('{"a')]),
    ("tags", f'{CALL}\n{{"name": "now", "arguments": {{"a', [NOW[0], ParsedCallArguments('{"a')]),
    ("tags", f'{CALL}\n{{"name": "now", "arguments": {{}}', NOW),
    ("tags", f'{CALL}\n{{"name": "now", "argum', [NOW[0]]), ("tags", f'{CALL}\n{{"name": "now"', [NOW[0]]),
    ("tags", f'{CALL}\n{{"name": "no', []), ("tags", CALL, [])])
def test_a_call_that_was_cut_is_the_beginning_of_one_if_its_name_is_certain(
        kind: str, text: str, parsed: list[Parsed]) -> None:
    assert parse(kind, [text], was_cut=True) == parsed


@pytest.mark.parametrize(("kind", "text", "is_thinking", "parsed"), [
    ("named", f"{THINK}hm\n{END_THINK}\nyes", False, [ParsedReasoning("hm\n"), ParsedText("\nyes")]),
    ("tags", f"{THINK}\nhm\n\nhm\n{END_THINK}\n\nyes\n", False, [ParsedReasoning("hm\n\nhm"), ParsedText("yes\n")]),
    ("tags", f"\nhm\n{END_THINK}\n\nyes", True, [ParsedReasoning("hm"), ParsedText("yes")]),
    ("named", f"{THINK}hm", False, [ParsedReasoning("hm")]),
    ("named", f"a{END_THINK}b{THINK}c{THINK}d", False, [ParsedText("a[/THINK]b"), ParsedReasoning("c[THINK]d")]),
    ("named", f"{THINK}hm{NAMED}", False, [ParsedReasoning("hm"), *WEATHER]),
    ("named", "[THINK]hm[/THINK][TOOL_CALLS]now", False, [ParsedText("[THINK]hm[/THINK][TOOL_CALLS]now")])])
def test_thinking(kind: str, text: str, is_thinking: bool, parsed: list[Parsed]) -> None:
    assert parse(kind, [text], is_thinking=is_thinking) == parse(kind, list(text), is_thinking=is_thinking) == parsed


def test_a_prompt_that_ends_in_an_open_thinking_part_is_seen(tmp_path: Path) -> None:
    tok = MistralTokenizer(tekken.write(tmp_path))
    format = AnswerFormat.of(tok, "named")
    ends = {text: format.thinks_at_end_of(tok.encode(text, parse_control=True))
            for text in ("", "a", "[THINK]", "[THINK]a\n", "[THINK]a[/THINK]", "[THINK]a[/THINK][INST][THINK]")}
    assert list(ends.values()) == [False, False, True, True, False, True]
    assert not AnswerFormat.of(tokenizer(), "tags").thinks_at_end_of([1, 2])


def test_text_that_holds_a_sentinel_does_not_act_like_one() -> None:
    stream = TextStream(has_sentinels=True)
    text = stream.push(f"a{CALL}now{ARGS}".encode()) + stream.sentinel(CALL)
    text += stream.push(b"now") + stream.sentinel(ARGS)
    assert text == f"a\ufffdnow\ufffd{CALL}now{ARGS}"
    assert TextStream().push(CALL.encode()) == CALL  # where no sentinels are asked for, it is a character like others


def test_a_mark_ends_half_a_character_and_half_a_stop_string() -> None:
    stream = TextStream(["END"], has_sentinels=True)
    assert [stream.push(b"a EN"), stream.sentinel(CALL), stream.push(b"D\xc3"), stream.sentinel(ARGS)] == [
        "a ", f"EN{CALL}", "D", f"\ufffd{ARGS}"]
    assert (stream.push(b"END"), stream.sentinel(CALL), stream.stopped) == ("", "", "END")
