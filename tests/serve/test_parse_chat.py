"""Every field of a chat request that changes the answer is honoured, or refused by name; others never refuse."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
from openai.resources.chat.completions import Completions

from brise.engine.request import Sampling
from brise.engine.sampling import resolve
from brise.errors import RequestError
from brise.serve.openai_chat import ChatRequest, parse_chat
from brise.serve.prompts import OPENAI_SAMPLING
from brise.text.fields import Ignored
from brise.text.inputs import Grammar, PartialSampling
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


def effect(request: ChatRequest) -> tuple[ChatRequest, Sampling]:
    """The request, with what it is sampled like by a model that suggests nothing in the place of its settings."""
    options = replace(request.options, sampling=PartialSampling())
    return replace(request, options=options), resolve(request.options.sampling, PartialSampling(), OPENAI_SAMPLING)


def test_a_bare_request_has_openais_defaults() -> None:
    request = parse()
    assert resolve(request.options.sampling, PartialSampling(), OPENAI_SAMPLING) == Sampling(1.0, top_p=1.0)
    assert (request.options.n, request.options.stop, request.options.stream) == (1, (), False)
    assert (request.max_tokens, request.logprobs, request.grammar) == (None, None, None)
    assert not request.tooling.active


def test_sampling_fields_reach_the_engine() -> None:
    request = parse(temperature=0, top_p=0.5, top_k=7, min_p=0.1, repetition_penalty=1.2, presence_penalty=-1,
                    frequency_penalty=2, logit_bias={"5": -100, "7": 1.5}, seed=3, n=2, stop="x",
                    ignore_eos=True)
    assert request.options.sampling == PartialSampling(
        0.0, 7, 0.5, 0.1, 1.2, None, -1.0, 2.0, {5: -100.0, 7: 1.5}, 3)
    assert (request.options.n, request.options.stop, request.options.ignore_eos) == (2, ("x",), True)


def test_the_repetition_penalty_has_llama_servers_name_too() -> None:
    sampling = parse(repeat_penalty=1.3, repeat_last_n=64).options.sampling
    assert (sampling.repetition_penalty, sampling.repeat_last_n) == (1.3, 64)
    assert parse(repeat_penalty=1.3, repetition_penalty=1.3) == parse(repetition_penalty=1.3)
    error = refused(repeat_penalty=1.3, repetition_penalty=1.1)
    assert error.param == "repeat_penalty" and "'repetition_penalty' is 1.1" in str(error)


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


@pytest.mark.parametrize(("prediction", "text"), [
    ({"type": "content", "content": "an answer"}, "an answer"),
    ({"type": "content", "content": [{"type": "text", "text": "an "}, {"type": "text", "text": "answer"}]},
     "an answer"),
    ({"type": "content", "content": 5}, ""), ("an answer", ""), ({"type": "other", "content": "an answer"}, "")])
def test_a_prediction_is_read_and_never_refused(prediction: object, text: str) -> None:
    assert parse(prediction=prediction).prediction == text


def test_logprobs() -> None:
    assert parse(logprobs=True).logprobs == 0
    assert parse(logprobs=True, top_logprobs=4).logprobs == 4
    assert refused(top_logprobs=4).param == "top_logprobs"
    assert refused(logprobs=True, top_logprobs=21).param == "top_logprobs"


@pytest.mark.parametrize("fields", [
    {"user": "u"}, {"metadata": {"a": "b"}}, {"store": False}, {"service_tier": "auto"},
    {"modalities": ["text"]},
    {"verbosity": "medium"}, {"safety_identifier": "s"},
    {"prompt_cache_key": "k"},
    {"prompt_cache_retention": "in_memory"}, {"parallel_tool_calls": False}, {"tools": []},
    {"tool_choice": "none"},
    {"response_format": {"type": "text"}}, {"new_thing": None}, {"top_k": -1}, {"top_k": 0}, {"max_tokens": -1},
    {"n_predict": -1}, {"stop": ""}, {"stop": []}, {"stop": [""]}, {"stream_options": {"include_usage": True}},
    {"logit_bias": {}}, {"n": 1}, {"cache_prompt": True}, {"keep_alive": "5m"}, {"store": True},
    {"service_tier": "flex"},
    {"metadata": {"a": 1}}, {"metadata": {str(n): "" for n in range(17)}}, {"functions": []}, {"function_call": "auto"},
    {"prompt_cache_retention": "24h"}, {"prompt_cache_options": {"a": 1}}, {"prediction": {"type": "content"}},
    {"moderation": {}}, {"audio": {}}, {"min_tokens": 0}, {"typical_p": 1.0}, {"mirostat": 0, "mirostat_tau": 5.0},
    {"dry_multiplier": 0.0, "dry_base": 1.75}, {"repeat_penalty": 1},
    {"repeat_last_n": -1}, {"seed": -1}, {"skip_special_tokens": True}, {"id_slot": -1},
    {"guided_json": None}, {"use_beam_search": False}, {"best_of": None},
    {"response_format": {"type": "text", "json_schema": None}},
    {"tools": [], "tool_choice": "auto"}, {"reasoning_effort": None, "think": None, "chat_template_kwargs": {}}])
def test_harmless_fields_change_nothing(fields: dict[str, object]) -> None:
    assert effect(parse(**fields)) == effect(parse())


@pytest.mark.parametrize(("fields", "param"), [
    ({"modalities": ["audio"]}, "modalities"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"), ({"verbosity": "low"}, "verbosity"),
    ({"audio": {"voice": "x"}}, "audio"), ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"), ({"web_search_options": {}}, "web_search_options"),
    ({"moderation": {"a": 1}}, "moderation"), ({"min_tokens": -1}, "min_tokens"), ({"typical_p": 0.5}, "typical_p"),
    ({"mirostat": 2}, "mirostat"), ({"grammar": "root ::= x"}, "grammar"), ({"guided_json": {}}, "guided_json"),
    ({"repeat_penalty": 0}, "repeat_penalty"), ({"repeat_last_n": -2}, "repeat_last_n"),
    ({"no_repeat_ngram_size": 3}, "no_repeat_ngram_size"), ({"use_beam_search": True}, "use_beam_search"),
    ({"stop_token_ids": [5, "a"]}, "stop_token_ids"), ({"options": {"num_ctx": 9}}, "options"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": True}, "top_k"), ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"logit_bias": {"a": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"), ({"logit_bias": {"1": 1, "01": 1}}, "logit_bias"),
    ({"stop": ["a"] * 17}, "stop"), ({"stop": [1]}, "stop"), ({"n": 0}, "n"),
    ({"n": 129}, "n"), ({"n": True}, "n"), ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": -1}, "top_p"), ({"seed": 1.5}, "seed"), ({"max_tokens": 0}, "max_tokens"),
    ({"stream": 1}, "stream"),
    ({"model": 1}, "model"), ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"new_thing": 1}, "new_thing"), ({"stream_options": True}, "stream_options"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
     "response_format.json_schema.schema"),
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
    assert parse(response_format=schema).grammar == Grammar("json_schema", '{"type": "object"}', strict=True)
    beside = parse(response_format={"type": "json_object", "schema": {"type": "object"}})  # llama-server's form
    assert beside.grammar == Grammar("json_schema", '{"type": "object"}')


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


@pytest.mark.parametrize("stop", [5, True, {}, [1]])
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
     "messages[0].content[0].input_audio.data"),
    ({"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}, "messages[0].content[0].type"),
    ({"role": "user", "content": []}, "messages[0].content"), ({"role": "user", "content": 5},
                                                               "messages[0].content"),
    ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[0].tool_calls"),
    ({"role": "assistant", "content": "a", "audio": {"id": "x"}}, "messages[0].audio"),
    ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "messages[0].tool_calls[0].type"),
    ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a", "arguments": 5}}]},
     "messages[0].tool_calls[0].function.arguments"),
    ({"role": "tool", "tool_call_id": "zz", "content": "a"}, "messages[0].tool_call_id")])
def test_wrong_messages_are_refused_by_place(message: object, param: str) -> None:
    assert refused(messages=[message]).param == param


def test_a_conversation_has_messages() -> None:
    for messages in ([], None, "hi"):
        assert refused(messages=messages).param == "messages"


@pytest.mark.parametrize(("message", "content", "reasoning"), [
    ({"content": '{"a":1}', "parsed": {"a": 1}}, '{"a":1}', None),
    ({"content": "Hi", "reasoning": "A greeting.", "reasoning_details": [{"type": "x"}]}, "Hi", "A greeting."),
    ({"content": "Hi", "reasoning_content": "Hm.", "reasoning": "Hm."}, "Hi", "Hm."),
    ({"content": None, "reasoning_content": "It was cut"}, "", "It was cut"),
    ({"content": None, "refusal": "I cannot."}, "I cannot.", None), ({"content": []}, "", None),
    ({"content": [{"type": "refusal", "refusal": "No."}], "refusal": "No."}, "No.", None),
    ({"content": "Hi", "refusal": None, "audio": None, "function_call": None, "annotations": [{"a": 1}], "id": "m1",
      "name": "bot", "tool_calls": None, "provider_specific_fields": {"x": 1}, "opts": None}, "Hi", None)])
def test_what_servers_and_clients_make_of_an_answer_can_be_sent_back(
        message: dict[str, object], content: str, reasoning: str | None) -> None:
    sent = parse(messages=[*USER, {"role": "assistant", **message}, *USER]).messages[1]
    assert (sent.content, sent.reasoning) == (content, reasoning)


@pytest.mark.parametrize(("arguments", "read"), [
    ('{"x": 1}', {"x": 1}), ('{"x', '{"x'), ("[1]", "[1]"), ("null", {}), ("", {}), (None, {}), ({"x": 1}, {"x": 1})])
def test_a_call_can_be_sent_back_however_it_was_cut(arguments: object, read: object) -> None:
    call = {**CALL, "function": {"name": "add", "arguments": arguments, "parsed_arguments": {"x": 1}}, "index": 0}
    messages = parse(messages=[*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]).messages
    assert template_message(messages[1])["tool_calls"][0]["function"]["arguments"] == read  # type: ignore[index]


def test_unknown_fields_are_accepted_and_reported() -> None:
    ignored = Ignored()
    body = {"model": "m", "messages": [{**USER[0], "opts": {"visible": True}, "id": 1}], "new_thing": 1,
            "nothing": None,
            "tools": [{**TOOL, "cache_control": {"type": "ephemeral"}, "own": 1}],
            "metadata": {"a": "b"}, "store": True}
    parse_chat(body, ignored)  # type: ignore[arg-type]
    assert set(ignored.reasons) == {"messages[0].opts", "messages[0].id", "new_thing", "tools[0].own",
                                    "tools[0].cache_control", "store"}
