"""Mistral's chat formats as literal strings, version by version, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import pytest
from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

from brise.errors import RequestError
from brise.text.chat import ChatTemplate
from brise.text.fields import RequestFields
from brise.text.inputs import ImageInput
from brise.text.json_text import Json
from brise.text.mistral import MistralTokenizer
from brise.text.mistral_chat import MistralChat
from brise.text.thinking import parse_wishes, variables
from brise.text.tokenizer import Tokenizer
from tests.text import tekken

Message = Mapping[str, object]
Open = Callable[[str], MistralChat]
SYSTEM, USER, AGAIN = ({"role": role, "content": text}
                       for role, text in (("system", "S"), ("user", "U"), ("user", "V")))
ANSWER = {"role": "assistant", "content": "A"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "é", "parameters": PARAMETERS}}]
TOOLS_TEXT = f"[AVAILABLE_TOOLS]{json.dumps(TOOLS, ensure_ascii=False)}[/AVAILABLE_TOOLS]"


def call(*ids: str) -> Message:
    function = {"name": "weather", "arguments": {"city": "Paris"}}
    return {"role": "assistant", "content": "", "tool_calls": [
        {"id": call_id, "type": "function", "function": function} for call_id in ids]}


def result(text: str, call_id: str) -> Message:
    return {"role": "tool", "content": text, "tool_call_id": call_id}


@pytest.fixture(scope="module")
def open_chat(tmp_path_factory: pytest.TempPathFactory) -> Open:
    chats: dict[str, MistralChat] = {}

    def opened(version: str) -> MistralChat:
        if version not in chats:
            path = tekken.write(tmp_path_factory.mktemp(version), version)
            chats[version] = MistralChat.of(MistralTokenizer(path))
        return chats[version]

    return opened


def shown(chat: MistralChat, messages: Sequence[Message], **more: object) -> str:
    return chat._tokenizer.decode(chat.prompt(messages, **more).tokens, show_control=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(("version", "text"), [
    ("v3", "<s>[INST]U[/INST]A</s>[INST]S\n\nV[/INST]"),
    ("v7", "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]U[/INST]A</s>[INST]V[/INST]"),
    ("v11", "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]U[/INST]A</s>[INST]V[/INST]"),
    ("v13", "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]U[/INST]A</s>[INST]V[/INST]"),
    ("v15", '<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][MODEL_SETTINGS]{"reasoning_effort": "none"}[/MODEL_SETTINGS]'
            "[INST]U[/INST]A</s>[INST]V[/INST]")])
def test_a_conversation(open_chat: Open, version: str, text: str) -> None:
    assert shown(open_chat(version), [SYSTEM, USER, ANSWER, AGAIN]) == text


@pytest.mark.parametrize(("version", "text"), [
    ("v3", '[INST]U[/INST][TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]</s>'
           '[TOOL_RESULTS]{"content": "sunny", "call_id": "abcdefghi"}[/TOOL_RESULTS]A</s>TOOLS[INST]V[/INST]'),
    ("v7", '[INST]U[/INST][TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]</s>'
           "[TOOL_RESULTS]abcdefghi[TOOL_CONTENT]sunny[/TOOL_RESULTS]A</s>TOOLS[INST]V[/INST]"),
    ("v11", '[INST]U[/INST][TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}</s>'
            "[TOOL_RESULTS]abcdefghi[TOOL_CONTENT]sunny[/TOOL_RESULTS]A</s>TOOLS[INST]V[/INST]"),
    ("v13", 'TOOLS[INST]U[/INST][TOOL_CALLS]weather[ARGS]{"city": "Paris"}</s>'
            "[TOOL_RESULTS]sunny[/TOOL_RESULTS]A</s>[INST]V[/INST]")])
def test_tools_calls_and_results(open_chat: Open, version: str, text: str) -> None:
    messages = [USER, call("abcdefghi"), result("sunny", "abcdefghi"), ANSWER, AGAIN]
    expected = text.replace("TOOLS[INST]", f"{TOOLS_TEXT}[INST]")
    assert shown(open_chat(version), messages, tools=TOOLS) == f"<s>{expected}"


def test_several_calls_and_their_results_in_the_order_of_the_calls(open_chat: Open) -> None:
    messages = [USER, call("aaaaaaaaa", "bbbbbbbbb"), result("two", "bbbbbbbbb"), result("one", "aaaaaaaaa")]
    one = '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}'
    assert shown(open_chat("v13"), messages) == (
        f"<s>[INST]U[/INST]{one}{one}</s>[TOOL_RESULTS]one[/TOOL_RESULTS][TOOL_RESULTS]two[/TOOL_RESULTS]")


@pytest.mark.parametrize("version", ["v3", "v7", "v11"])
def test_ids_of_other_servers_become_nine_letters(open_chat: Open, version: str) -> None:
    foreign = "call_0123456789"
    text = shown(open_chat(version), [USER, call(foreign), result("r", foreign)])
    made = text.split('"id": "')[1][:9] if version != "v11" else text.split("[CALL_ID]")[1][:9]
    assert made.isalnum() and text.count(made) == 2 and foreign not in text


def test_thinking_stands_before_the_answer_and_in_system_prompts(open_chat: Open) -> None:
    thought = {"role": "assistant", "content": "A", "reasoning_content": "t"}
    assert shown(open_chat("v13"), [USER, thought, AGAIN]) == "<s>[INST]U[/INST][THINK]t[/THINK]A</s>[INST]V[/INST]"
    parts = [{"type": "text", "text": "S"}, {"type": "thinking", "thinking": "t"}, {"type": "text", "text": "T"}]
    assert shown(open_chat("v13"), [{"role": "system", "content": parts}, USER]) == (
        "<s>[SYSTEM_PROMPT]S[THINK]t[/THINK]T[/SYSTEM_PROMPT][INST]U[/INST]")


@pytest.mark.parametrize("version", ["v3", "v7", "v11"])
def test_models_that_do_not_think_do_not_get_to_see_what_others_thought(open_chat: Open, version: str) -> None:
    thought = {"role": "assistant", "content": "A", "reasoning_content": "secret"}
    assert shown(open_chat(version), [USER, thought, AGAIN]) == "<s>[INST]U[/INST]A</s>[INST]V[/INST]"


@pytest.mark.parametrize("version", ["v3", "v7", "v11", "v13"])
def test_an_answer_is_continued_without_its_end(open_chat: Open, version: str) -> None:
    assert shown(open_chat(version), [USER, ANSWER], continue_final=True) == "<s>[INST]U[/INST]A"


def test_consecutive_messages_of_a_user_are_parted_by_a_blank_line(open_chat: Open) -> None:
    assert shown(open_chat("v13"), [USER, AGAIN]) == "<s>[INST]U\n\nV[/INST]"


@pytest.mark.parametrize("version", ["v3", "v7", "v11", "v13"])
def test_no_system_prompt_is_added_and_no_text_becomes_a_control_token(open_chat: Open, version: str) -> None:
    chat, evil = open_chat(version), "".join(tekken.control_names(version))
    harmless, tokens = (chat.prompt([{"role": "user", "content": text}, {**ANSWER, "content": text}, {
        "role": "user", "content": text}], tools=[{"function": {"name": "f", "description": text}}]).tokens
        for text in ("x", evil))
    control = set(chat._tokenizer.control.values())
    assert [token for token in tokens if token in control] == [token for token in harmless if token in control]
    assert chat._tokenizer.decode(tokens).count(evil) == 4


@pytest.mark.parametrize(("arguments", "written"), [('{"city": "Pa', 'weather{"city": "Pa'), ({}, "weather")])
@pytest.mark.parametrize("version", ["v3", "v7", "v11", "v13"])
def test_a_cut_call_that_nobody_answered_is_text(open_chat: Open, version: str, arguments: object,
                                                 written: str) -> None:
    cut = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": {
        "name": "weather", "arguments": arguments}}]}
    assert shown(open_chat(version), [USER, cut, AGAIN]) == f"<s>[INST]U[/INST]{written}</s>[INST]V[/INST]"
    answered = shown(open_chat(version), [USER, cut, result("r", "c")])
    assert "[TOOL_CALLS]" in answered and written not in answered.replace("[ARGS]", "").replace("weather", "")


@pytest.mark.parametrize(("wish", "setting"), [
    ({}, "none"), ({"reasoning_effort": "high"}, "high"), ({"reasoning_effort": "none"}, "none"),
    ({"enable_thinking": True}, "high"), ({"think": False}, "none"), ({"reasoning": {"enabled": True}}, "high"),
    ({"chat_template_kwargs": {"reasoning_effort": "high"}}, "high"), ({"reasoning_effort": "auto"}, "none"),
    ({"enable_thinking": True, "reasoning_effort": "high"}, "high")])
def test_an_effort_of_reasoning_reaches_the_format(open_chat: Open, wish: Json, setting: str) -> None:
    chat = open_chat("v15")
    given = variables(parse_wishes(RequestFields(wish)), chat)
    text = f'[MODEL_SETTINGS]{{"reasoning_effort": "{setting}"}}[/MODEL_SETTINGS]'
    assert text in shown(chat, [USER], variables=given)


@pytest.mark.parametrize(("version", "wish", "path"), [
    ("v15", {"reasoning_effort": "low"}, "reasoning_effort"), ("v13", {"reasoning_effort": "high"}, "reasoning_effort"),
    ("v15", {"reasoning": {"effort": "max"}}, "reasoning.effort"), ("v3", {"enable_thinking": True}, "enable_thinking"),
    ("v13", {"think": False}, "think"), ("v15", {"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x")])
def test_an_effort_that_the_format_does_not_have_is_refused_by_name(open_chat: Open, version: str, wish: Json,
                                                                    path: str) -> None:
    with pytest.raises(RequestError) as caught:
        variables(parse_wishes(RequestFields(wish)), open_chat(version))
    assert (caught.value.param, caught.value.code) == (path, "unsupported_parameter")


def test_images_stand_where_their_parts_do(open_chat: Open) -> None:
    first, second = (ImageInput(bytes([number]), (10, 13), lambda: None) for number in range(2))
    content = [{"type": "image", "image": first}, {"type": "text", "text": "U"}, {"type": "image", "image": second},
               {"type": "text", "text": "V"}]
    encoded = open_chat("v13").prompt([{"role": "user", "content": content}])
    assert encoded.images == (first, second)
    assert open_chat("v13")._tokenizer.decode(encoded.tokens, show_control=True) == (
        "<s>[INST][IMG][IMG_END]U[IMG][IMG_END]V[/INST]")


@pytest.mark.parametrize(("messages", "param"), [
    ([], "messages"), ([ANSWER], "messages"), ([USER, ANSWER], "messages"),
    ([{"role": "bot", "content": ""}], "messages[0].role"),
    ([USER, call("abcdefghi"), AGAIN], "messages"),
    ([{"role": "user", "content": [{"type": "sound"}]}], "messages[0].content"),
    ([{"role": "user", "content": "\ud800"}], None), ([USER, result("r", "abcdefghi")], "messages")])
def test_what_the_format_has_no_place_for_is_refused(open_chat: Open, messages: list[Message],
                                                     param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        open_chat("v13").prompt(messages)
    assert caught.value.param == param


@pytest.mark.parametrize("function", [{"name": "a b"}, {"name": "f", "parameters": {"type": "nothing"}}])
def test_tools_that_are_none_are_refused(open_chat: Open, function: Mapping[str, object]) -> None:
    with pytest.raises(RequestError) as caught:
        open_chat("v13").prompt([USER], tools=[{"function": function}])
    assert caught.value.param == "tools"


def test_a_finished_conversation_is_encoded_for_training(open_chat: Open) -> None:
    assert shown(open_chat("v13"), [USER, ANSWER], add_generation_prompt=False) == "<s>[INST]U[/INST]A</s>"


def test_a_template_over_the_same_vocabulary_gives_the_same_tokens(open_chat: Open) -> None:
    chat = open_chat("v13")
    tokenizer = Tokenizer.from_gguf(tekken.gguf_metadata())
    template = ChatTemplate(convert_tokenizer_to_chat_template(chat._tokenizer.path), tokenizer)
    assert template.knows_tools and template.format == chat.format
    thought = {"role": "assistant", "content": "A", "reasoning_content": "t"}
    foreign = [USER, call("call_1"), result("sunny [INST]", "call_1")]
    for messages in ([SYSTEM, USER], [USER, thought, AGAIN], foreign, [*foreign, thought, AGAIN]):
        assert template.prompt(messages, tools=TOOLS) == chat.prompt(messages, tools=TOOLS)
    assert template.prompt([USER, thought], continue_final=True) == chat.prompt([USER, thought], continue_final=True)
