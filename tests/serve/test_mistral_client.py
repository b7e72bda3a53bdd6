"""OpenAI's client talks to a model in Mistral's format: reasoning, tool calls, and their errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import openai
import pytest
from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template

from brise.text.chat import ChatTemplate
from brise.text.load import Tokens
from brise.text.mistral import MistralTokenizer
from brise.text.mistral_chat import MistralChat
from brise.text.tokenizer import Tokenizer
from tests.engine.stub import stub_model
from tests.serve.live import live
from tests.serve.test_openai_client import TOOL
from tests.text import tekken
from tests.text.vocabulary import CHATML, tokenizer

HI = [{"role": "user", "content": "hi"}]
GREEDY = {"model": "stub", "messages": HI, "temperature": 0}
CALL = '[TOOL_CALLS]add[ARGS]{"x": 1}'
Connect = Callable[..., AbstractContextManager[openai.OpenAI]]


@pytest.fixture(scope="module")
def connect(tmp_path_factory: pytest.TempPathFactory) -> Connect:
    tokenizers: dict[str, MistralTokenizer] = {}

    @contextmanager
    def opened(reply: str, version: str = "v13") -> Iterator[openai.OpenAI]:
        if version not in tokenizers:
            tokenizers[version] = MistralTokenizer(tekken.write(tmp_path_factory.mktemp(version), version))
        tokens = Tokens(tokenizers[version], MistralChat.of(tokenizers[version]))
        with live(stub_model(reply, tokens=tokens)) as server, server.client() as client:
            yield client
            server.wait_idle()

    return opened


def streamed(client: openai.OpenAI, **more: object) -> dict[str, object]:
    """The message that clients assemble from a stream."""
    text, reasoning, finish, calls = "", "", None, list[list[str]]()
    for chunk in client.chat.completions.create(**GREEDY, stream=True, **more):  # type: ignore[call-overload]
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        reasoning += (choice.delta.model_extra or {}).get("reasoning_content", "")
        finish = choice.finish_reason or finish
        for call in choice.delta.tool_calls or []:
            if call.id is not None:
                calls.append([call.function.name, ""])
            calls[call.index][1] += call.function.arguments
    return {"text": text, "reasoning": reasoning, "finish": finish, "calls": calls}


def whole(client: openai.OpenAI, **more: object) -> dict[str, object]:
    choice = client.chat.completions.create(**GREEDY, **more).choices[0]  # type: ignore[call-overload]
    calls = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls or []]
    return {"text": choice.message.content or "", "finish": choice.finish_reason, "calls": calls,
            "reasoning": (choice.message.model_extra or {}).get("reasoning_content", "")}


def received(text: str = "", finish: str = "stop", calls: tuple[list[str], ...] = (),
         reasoning: str = "") -> dict[str, object]:
    return {"text": text, "reasoning": reasoning, "finish": finish, "calls": [*calls]}


ADD = ["add", '{"x": 1}']


@pytest.mark.parametrize(("reply", "more", "expected"), [
    ("[THINK]hm[/THINK]yes", {}, received("yes", reasoning="hm")),
    (f"[THINK]hm[/THINK]Well.{CALL}{CALL}", {"tools": [TOOL]}, received("Well.", "tool_calls", (ADD, ADD), "hm")),
    (CALL, {}, received(CALL)), (f"a{CALL}", {"tools": [TOOL], "max_tokens": 1}, received("a", "length")),
    ("[THINK]hm hm hm", {"max_tokens": 2}, received("", "length", reasoning="h")),
    (CALL, {"tools": [TOOL], "stop": "x"}, received("", "stop", (["add", '{"'],))),
    ('[TOOL_CALLS]add[ARGS]{"x"', {"tools": [TOOL], "max_tokens": 6}, received("", "length", (["add", '{"'],)))])
def test_a_stream_and_a_body_say_the_same(connect: Connect, reply: str, more: dict[str, object],
                                          expected: dict[str, object]) -> None:
    with connect(reply) as client:
        one, other = whole(client, **more), streamed(client, **more)
    assert one == other
    if "max_tokens" not in more:  # how far an answer comes within them depends on the vocabulary
        assert one == expected
    else:
        assert one["finish"] == "length" and str(expected["reasoning"]) <= str(one["reasoning"])


@pytest.mark.parametrize(("version", "reply"), [
    ("v7", '[TOOL_CALLS][{"name": "add", "arguments": {"x": 1}, "id": "abcdefghi"}]'),
    ("v3", '[TOOL_CALLS][{"name": "add", "arguments": {"x": 1}}]'),
    ("v11", '[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{"x": 1}'), ("v13", CALL), ("v15", CALL)])
def test_each_version_calls_and_goes_on(connect: Connect, version: str, reply: str) -> None:
    with connect(reply, version) as client:
        answer = client.chat.completions.create(**GREEDY, tools=[TOOL])
        message = answer.choices[0].message
        assert message.content is None and answer.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls is not None and json.loads(message.tool_calls[0].function.arguments) == {"x": 1}
        assert len(message.tool_calls[0].id) == 9 and (version != "v11" or message.tool_calls[0].id == "abcdefghi")
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2"}
        client.chat.completions.create(**{**GREEDY, "messages": [*HI, message, result]}, tools=[TOOL])


@pytest.mark.parametrize(("choice", "is_call"), [("required", True), ("none", False), ("auto", False), (
    {"type": "function", "function": {"name": "add"}}, True)])
def test_the_choice_is_enforced(connect: Connect, choice: object, is_call: bool) -> None:
    with connect("[THINK]I think that I had better say: no.[/THINK]no") as client:
        answer = client.chat.completions.create(**GREEDY, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    assert bool(answer.choices[0].message.tool_calls) is is_call
    assert is_call or answer.choices[0].message.content == "no"


def test_none_keeps_a_model_from_calling(connect: Connect) -> None:
    with connect(CALL) as client:
        answer = client.chat.completions.create(**GREEDY, tools=[TOOL], tool_choice="none", max_tokens=30)
    message = answer.choices[0].message
    assert message.tool_calls is None and message.content is not None and "[TOOL_CALLS]" not in message.content


def test_a_call_is_streamed_in_pieces(connect: Connect) -> None:
    with connect(CALL) as client:
        chunks = list(client.chat.completions.create(**GREEDY, tools=[TOOL], stream=True))
    pieces = [call.function.arguments for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert len([piece for piece in pieces if piece]) > 1 and "".join(pieces) == '{"x": 1}'


def test_thinking_is_sent_back_and_kept(connect: Connect) -> None:
    with connect("[THINK]hm[/THINK]yes") as client:
        message = client.chat.completions.create(**GREEDY).choices[0].message
        again = client.chat.completions.create(**{**GREEDY, "messages": [*HI, message, *HI]})
        without = client.chat.completions.create(**{**GREEDY, "messages": [*HI, {
            "role": "assistant", "content": "yes"}, *HI]})
    assert message.model_extra == {"reasoning_content": "hm"}
    assert again.usage is not None and without.usage is not None
    assert again.usage.prompt_tokens == without.usage.prompt_tokens + 2 + 2  # [THINK], h, m, [/THINK]


def test_an_answer_goes_on_where_its_prefix_stops(connect: Connect) -> None:
    with connect("yes, of course") as client:
        start = {"role": "assistant", "content": "yes,", "prefix": True}
        answer = client.chat.completions.create(**{**GREEDY, "messages": [*HI, start]})
        assert answer.choices[0].message.content == " of course"
        for wrong in ([start, *HI], [*HI, {"role": "assistant", "content": "a"}]):
            with pytest.raises(openai.BadRequestError):
                client.chat.completions.create(**{**GREEDY, "messages": wrong})


def test_a_system_prompt_may_show_how_to_think(connect: Connect) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}, {"type": "text", "text": "c"}]
    with connect("yes") as client:
        for role, is_right in (("system", True), ("developer", True), ("user", False)):
            messages = [{"role": role, "content": parts}, *HI]
            if is_right:
                client.chat.completions.create(**{**GREEDY, "messages": messages})
            else:
                with pytest.raises(openai.BadRequestError, match="thinking"):
                    client.chat.completions.create(**{**GREEDY, "messages": messages})


def test_a_response_format_holds_from_the_first_token(connect: Connect) -> None:
    with connect('[THINK]hm[/THINK]{"a": 1}') as client:
        answer = client.chat.completions.create(**GREEDY, response_format={"type": "json_object"}, max_tokens=300)
    assert answer.choices[0].message.model_extra == {}


def test_responses_have_the_answer_alone(connect: Connect) -> None:
    with connect("[THINK]hm[/THINK]yes") as client:
        answer = client.responses.create(model="stub", input="hi", temperature=0)
        events = list(client.responses.create(model="stub", input="hi", temperature=0, stream=True))
    assert answer.output_text == "yes" and events[-1].type == "response.completed"


@pytest.mark.parametrize("parameters", [{"type": "nothing"}, {"properties": 5}, {"type": "string"}])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_tool_whose_schema_is_none_is_refused(connect: Connect, parameters: object, choice: str) -> None:
    with connect("yes") as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**GREEDY, tool_choice=choice, tools=[
            {"type": "function", "function": {"name": "f", "parameters": parameters}}])
    assert caught.value.param == "tools[0].function.parameters"


def test_a_template_of_a_gguf_file_does_the_same(tmp_path: Path) -> None:
    template = convert_tokenizer_to_chat_template(tekken.write(tmp_path))
    tokenizer = Tokenizer.from_gguf(tekken.gguf_metadata())
    model = stub_model(f"[THINK]hm[/THINK]Well.{CALL}", tokens=Tokens(tokenizer, ChatTemplate(template, tokenizer)))
    with live(model) as server, server.client() as client:
        assert whole(client, tools=[TOOL]) == received("Well.", "tool_calls", (ADD,), "hm")
        assert streamed(client, tools=[TOOL]) == received("Well.", "tool_calls", (ADD,), "hm")


def test_a_template_that_opens_the_thinking_part_and_calls_in_tags() -> None:
    open_thinking = CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}") + "{# tools <tool_call> #}"
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tok = tokenizer(control=control, user_defined=("<think>", "</think>", "<tool_call>", "</tool_call>"))
    reply = 'hm\n</think>\n\nWell.\n<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
    model = stub_model(reply, tokens=Tokens(tok, ChatTemplate(open_thinking, tok)))
    with live(model) as server, server.client() as client:
        assert whole(client, tools=[TOOL]) == received("Well.", "tool_calls", (ADD,), "hm")
        assert streamed(client, tools=[TOOL]) == received("Well.", "tool_calls", (ADD,), "hm")
        forced = whole(client, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=300)
        assert forced["reasoning"] and (forced["calls"] or forced["finish"] == "length")
        assert whole(client)["reasoning"] == "hm"
