"""Every field of a chat request is honoured, or refused by name."""

from __future__ import annotations

import inspect

import pytest
from openai.resources.chat.completions import Completions

from brise.engine.request import Sampling
from brise.errors import RequestError
from brise.serve.openai_chat import ChatRequest, parse_chat
from brise.text.inputs import Grammar
from brise.text.openai_messages import template_message

USER = [{"role": "user", "content": "hi"}]
NUMBERS = {"type": "object", "properties": {"x": {"type": "number"}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": NUMBERS}}
TOOL_2 = {"type": "function", "function": {"name": "sub"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}


def parse(**fields: object) -> ChatRequest:
    return parse_chat({"model": "m", "messages": USER, **fields})  # type: ignore[dict-item]


def refused(**fields: object) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    return caught.value


def test_a_bare_request_has_openais_defaults() -> None:
    request = parse()
    assert request.options.sampling == Sampling(temperature=1.0, top_p=1.0)
    assert (request.options.n, request.options.stop, request.options.stream) == (1, (), False)
    assert (request.max_tokens, request.logprobs, request.grammar) == (None, None, None)
    assert not request.tooling.active


def test_sampling_fields_reach_the_engine() -> None:
    request = parse(temperature=0, top_p=0.5, top_k=7, min_p=0.1, repetition_penalty=1.2, presence_penalty=-1,
                    frequency_penalty=2, logit_bias={"5": -100, "7": 1.5}, seed=3, n=2, stop="x",
                    ignore_eos=True)
    assert request.options.sampling == Sampling(0.0, 7, 0.5, 0.1, 1.2, -1.0, 2.0, {5: -100.0, 7: 1.5}, 3)
    assert (request.options.n, request.options.stop, request.options.ignore_eos) == (2, ("x",), True)


def test_null_means_absent() -> None:
    names = ["temperature", "top_p", "n", "stop", "seed", "logprobs", "top_logprobs", "logit_bias",
             "max_tokens",
             "max_completion_tokens", "response_format", "tools", "tool_choice", "parallel_tool_calls",
             "user",
             "metadata", "store", "stream", "stream_options", "service_tier", "audio", "functions",
             "prediction"]
    assert parse(**dict.fromkeys(names)) == parse()


def test_both_names_of_max_tokens_work_and_may_not_disagree() -> None:
    assert parse(max_tokens=5).max_tokens == parse(max_completion_tokens=5).max_tokens == 5
    assert parse(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert refused(max_tokens=5, max_completion_tokens=6).param == "max_tokens"


def test_logprobs() -> None:
    assert parse(logprobs=True).logprobs == 0
    assert parse(logprobs=True, top_logprobs=4).logprobs == 4
    assert refused(top_logprobs=4).param == "top_logprobs"
    assert refused(logprobs=True, top_logprobs=21).param == "top_logprobs"


@pytest.mark.parametrize("fields", [
    {"user": "u"}, {"metadata": {"a": "b"}}, {"store": False}, {"service_tier": "auto"},
    {"modalities": ["text"]},
    {"reasoning_effort": "none"}, {"verbosity": "medium"}, {"safety_identifier": "s"},
    {"prompt_cache_key": "k"},
    {"prompt_cache_retention": "in_memory"}, {"parallel_tool_calls": False}, {"tools": []},
    {"tool_choice": "none"},
    {"response_format": {"type": "text"}}])
def test_harmless_fields_change_nothing(fields: dict[str, object]) -> None:
    assert parse(**fields) == parse()


@pytest.mark.parametrize(("fields", "param"), [
    ({"store": True}, "store"), ({"service_tier": "flex"}, "service_tier"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"reasoning_effort": "high"}, "reasoning_effort"), ({"verbosity": "low"}, "verbosity"),
    ({"audio": {}}, "audio"), ({"prediction": {}}, "prediction"), ({"functions": []}, "functions"),
    ({"function_call": "auto"}, "function_call"), ({"web_search_options": {}}, "web_search_options"),
    ({"moderation": {}}, "moderation"), ({"prompt_cache_options": {}}, "prompt_cache_options"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"), ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"), ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias"),
    ({"stop": ["a"] * 17}, "stop"), ({"stop": [""]}, "stop"), ({"stop": [1]}, "stop"), ({"n": 0}, "n"),
    ({"n": 129}, "n"), ({"n": True}, "n"), ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": -1}, "top_p"), ({"seed": 1.5}, "seed"), ({"max_tokens": 0}, "max_tokens"),
    ({"stream": 1}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"), ({"model": 1}, "model"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"), ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"), ({"new_thing": None}, "new_thing"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
     "response_format.json_schema.name"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
     "response_format.json_schema.schema"),
    ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, "response_format"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"tools": [TOOL, TOOL]}, "tools"), ({"tools": [{"type": "function", "function": {"name": "a b"}}]},
                                         "tools[0].function.name"),
    ({"tools": [TOOL] * 129}, "tools"), ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
     "tool_choice.function.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice.type")])
def test_wrong_and_unsupported_fields_are_refused_by_name(fields: dict[str, object], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert param.split(".")[-1].split("[")[0] in str(error)


def test_every_field_of_the_official_client_is_known() -> None:
    own = {"self", "messages", "model", "extra_headers", "extra_query", "extra_body", "timeout"}
    for name in inspect.signature(Completions.create).parameters.keys() - own:
        try:
            parse(**{name: {"?": "?"}})
        except RequestError as error:
            assert error.code != "unknown_parameter" or error.param != name, name


def test_response_formats_become_grammars() -> None:
    assert parse(response_format={"type": "json_object"}).grammar == Grammar("json_object")
    schema = {"type": "json_schema", "json_schema": {"name": "a", "strict": True,
                                                     "schema": {"type": "object"}}}
    assert parse(response_format=schema).grammar == Grammar("json_schema", '{"type": "object"}')


def test_tool_choices() -> None:
    assert parse(tools=[TOOL]).tooling.mode == "auto"
    assert not parse(tools=[TOOL], tool_choice="none").tooling.active
    named = parse(tools=[TOOL, TOOL_2], tool_choice={"type": "function", "function": {"name": "sub"}}).tooling
    assert (named.mode, named.name, len(named.tools)) == ("named", "sub", 2)
    allowed = {"type": "allowed_tools", "allowed_tools": {
        "mode": "required", "tools": [{"type": "function", "function": {"name": "sub"}}]}}
    tooling = parse(tools=[TOOL, TOOL_2], tool_choice=allowed, parallel_tool_calls=False).tooling
    assert ([tool.name for tool in tooling.tools], tooling.mode, tooling.parallel) == (["sub"], "required",
                                                                                       False)


def test_a_whole_conversation_with_tools_is_read() -> None:
    messages = [{"role": "developer", "content": "be"}, {"role": "user", "content": [
        {"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "bob"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "annotations": []},
        {"role": "tool", "tool_call_id": "c1", "content": "2"}]
    views = [template_message(message) for message in parse(messages=messages).messages]
    assert views[0] == {"role": "system", "content": "be"}
    assert views[1] == {"role": "user", "content": "a\nb", "name": "bob"}
    assert views[2]["tool_calls"] == [{"id": "c1", "type": "function",
                                       "function": {"name": "add", "arguments": {"x": 1}}}]
    assert views[3] == {"role": "tool", "content": "2", "tool_call_id": "c1"}


@pytest.mark.parametrize("stop", [5, True, {}, [""], [1]])
def test_the_error_of_a_wrong_stop_names_both_types(stop: object) -> None:
    with pytest.raises(RequestError, match="'stop' must be a string or an array of strings"):
        parse(stop=stop)


@pytest.mark.parametrize(("message", "param"), [
    ({"role": "user"}, "messages[0].content"), ({"content": "a"}, "messages[0].role"), ("hi", "messages[0]"),
    ({"role": "function", "content": "a"}, "messages[0].role"),
    ({"role": "king", "content": "a"}, "messages[0].role"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {"href": "x"}}]},
     "messages[0].content[0].image_url.url"),
    ({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
     "messages[0].content[0].type"),
    ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
     "messages[0].content[0].type"),
    ({"role": "user", "content": []}, "messages[0].content"), ({"role": "user", "content": 5},
                                                               "messages[0].content"),
    ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[0].tool_calls"),
    ({"role": "assistant", "content": "a", "refusal": "no"}, "messages[0].refusal"),
    ({"role": "assistant", "content": "a", "audio": {"id": "x"}}, "messages[0].audio"),
    ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "messages[0].tool_calls[0].type"),
    ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a", "arguments": "[1]"}}]},
     "messages[0].tool_calls[0].function.arguments"),
    ({"role": "tool", "tool_call_id": "zz", "content": "a"}, "messages[0].tool_call_id")])
def test_wrong_messages_are_refused_by_place(message: object, param: str) -> None:
    assert refused(messages=[message]).param == param


def test_a_conversation_has_messages() -> None:
    for messages in ([], None, "hi"):
        assert refused(messages=messages).param == "messages"
