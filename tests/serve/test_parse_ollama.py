"""Requests of Ollama's API: what acts is read or refused by name, what does not is noted, the rest is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from brise.engine.sampling import resolve
from brise.errors import RequestError
from brise.serve.ollama_requests import OllamaRequest, parse_chat, parse_embed, parse_generate, usual_sampling
from brise.text.fields import Ignored
from brise.text.inputs import PartialSampling
from brise.text.openai_messages import Image, Message, TextPart
from brise.text.schema_forms import modern

CALL = {"function": {"name": "add", "arguments": {"x": 1}}}
HI = {"role": "user", "content": "hi"}


def chat(*messages: dict[str, Any], ignored: Ignored | None = None, **more: Any) -> OllamaRequest:
    return parse_chat({"model": "m", "messages": list(messages or (HI,)), **more}, ignored)


def sampling(**options: Any) -> Any:
    request = chat(options=options).chat
    return resolve(request.options.sampling, PartialSampling(), usual_sampling(request))


def test_options_are_read() -> None:
    read = sampling(temperature=0.5, top_k=7, top_p=0.5, min_p=0.1, seed=3, repeat_penalty=1.2, repeat_last_n=9,
                    presence_penalty=0.3, frequency_penalty=0.4)
    assert (read.temperature, read.top_k, read.top_p, read.min_p, read.seed) == (0.5, 7, 0.5, 0.1, 3)
    assert (read.repetition_penalty, read.repeat_last_n, read.penalizes_prompt) == (1.2, 9, True)
    assert (read.presence_penalty, read.frequency_penalty) == (0.3, 0.4)


def test_what_options_leave_out_is_as_in_ollama() -> None:
    read = sampling()
    assert (read.temperature, read.top_k, read.top_p, read.min_p, read.seed) == (0.8, 40, 0.9, 0, None)
    assert sampling(repeat_penalty=1.1).repeat_last_n == 64 and sampling(repeat_last_n=-1).repeat_last_n == -1
    assert sampling(seed=-1).seed is None and sampling(top_k=-1).top_k == 0
    limits = [chat(options={"num_predict": limit}).chat.max_tokens for limit in (None, -1, -2, 0, 5)]
    assert limits == [None, None, None, None, 5]


@pytest.mark.parametrize("more", [
    {"options": {"mirostat": 0, "tfs_z": 1.0, "typical_p": 1, "penalize_newline": True, "num_ctx": None}},
    {"options": None, "format": None, "tools": None, "think": None, "keep_alive": None, "logprobs": False},
    {"format": "", "think": "", "template": "", "suffix": "", "keep_alive": -1}, {"keep_alive": "-1m"},
    {"truncate": False, "shift": False}])
def test_values_that_ask_for_nothing_are_not_mentioned(more: dict[str, Any]) -> None:
    ignored = Ignored()
    chat(ignored=ignored, **more)
    chat(**more)  # a strict server takes them, too
    assert not ignored.reasons


@pytest.mark.parametrize(("more", "path"), [
    ({"keep_alive": "5m"}, "keep_alive"), ({"keep_alive": 0}, "keep_alive"), ({"truncate": True}, "truncate"),
    ({"options": {"num_ctx": 8192}}, "options.num_ctx"), ({"options": {"num_gpu": 99}}, "options.num_gpu"),
    ({"options": {"num_thread": 4}}, "options.num_thread"), ({"options": {"use_mmap": True}}, "options.use_mmap")])
def test_what_changes_no_answer_is_noted(more: dict[str, Any], path: str) -> None:
    ignored = Ignored()
    chat(ignored=ignored, **more)
    chat(**more)
    assert list(ignored.reasons) == [path]


@pytest.mark.parametrize(("more", "path"), [
    ({"made_up": 1}, "made_up"), ({"options": {"made_up": 1}}, "options.made_up"), ({"max_tokens": 5}, "max_tokens")])
def test_what_is_unknown_is_reported_or_refused(more: dict[str, Any], path: str) -> None:
    ignored = Ignored()
    chat(ignored=ignored, **more)
    assert list(ignored.reasons) == [path]
    with pytest.raises(RequestError, match=f"unknown field '{path}'"):
        chat(**more)


@pytest.mark.parametrize(("more", "path"), [
    ({"options": {"mirostat": 1}}, "options.mirostat"), ({"options": {"tfs_z": 0.9}}, "options.tfs_z"),
    ({"options": {"penalize_newline": False}}, "options.penalize_newline"), ({"template": "x"}, "template"),
    ({"options": {"rope_frequency_base": 1e6}}, "options.rope_frequency_base"), ({"suffix": "x"}, "suffix"),
    ({"format": "xml"}, "format"), ({"format": []}, "format"), ({"think": "hard"}, "think"),
    ({"options": {"temperature": -1}}, "options.temperature"), ({"options": []}, "options"),
    ({"options": {"stop": [1]}}, "options.stop"), ({"stream": "yes"}, "stream"), ({"images": ["x"]}, "images")])
def test_what_would_change_the_answer_is_refused(more: dict[str, Any], path: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**more)
    assert path in str(caught.value)


def test_results_belong_to_calls_without_ids() -> None:
    two = {"role": "assistant", "tool_calls": [CALL, {"function": {"name": "now", "arguments": {}}}]}
    read = chat(HI, two, {"role": "tool", "tool_name": "now", "content": "12"},
                {"role": "tool", "content": "2"}).chat.messages
    first, second = (call.id for call in read[1].calls)
    assert [message.call_id for message in read[2:]] == [second, first]
    named = {"role": "assistant", "tool_calls": [{**CALL, "id": "abc", "type": "function", "index": 0}]}
    assert chat(HI, named, {"role": "tool", "tool_call_id": "abc", "content": ""}).chat.messages[2].call_id == "abc"


@pytest.mark.parametrize("messages", [
    [{"role": "tool", "content": "1"}], [HI, {"role": "assistant", "tool_calls": [CALL]}],
    [HI, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_name": "sub", "content": "1"}],
    [{"role": "user", "content": "hi", "tool_calls": [CALL]}], [{"role": "system", "content": "", "images": ["aa"]}],
    [{"role": "robot", "content": ""}], [{"role": "user", "content": ["hi"]}], ["hi"]])
def test_messages_that_make_no_sense_are_refused(messages: list[Any]) -> None:
    with pytest.raises(RequestError, match="messages|content"):
        chat(*messages)


def test_images_come_before_the_text() -> None:
    message, = chat({**HI, "images": ["aGk=\n", "data:image/png;base64,aGk="]}).chat.messages
    assert message.content == (Image("messages[0].images[0]", "data:image/any;base64,aGk=\n"),
                               Image("messages[0].images[1]", "data:image/png;base64,aGk="), TextPart("hi"))


def test_the_end_of_an_assistant_is_the_beginning_of_the_answer() -> None:
    assert chat(HI, {"role": "assistant", "content": "I"}).chat.messages[-1].is_open
    assert chat(HI, {"role": "assistant", "content": ""}).chat.messages == (Message("user", "hi"),)


def test_without_a_question_there_is_nothing_to_answer() -> None:
    assert parse_chat({"model": "m"}).only_loads and parse_generate({"model": "m", "prompt": ""}).only_loads
    assert not chat().only_loads and chat().chat.options.stream and not chat(stream=False).chat.options.stream


@pytest.mark.parametrize("more", [{"system": "s"}, {"images": ["aa"]}, {"think": True}])
def test_a_raw_prompt_stands_alone(more: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="'raw'"):
        parse_generate({"model": "m", "prompt": "p", "raw": True, **more})


def test_texts_to_embed() -> None:
    assert parse_embed({"model": "m", "input": "a"}).texts == ("a",)
    assert parse_embed({"model": "m", "input": ["a", "b"], "truncate": True}, Ignored()).texts == ("a", "b")
    assert parse_embed({"model": "m", "prompt": "a"}, field="prompt").texts == ("a",)
    for wrong in (1, [1], {"a": 1}):
        with pytest.raises(RequestError, match="'input' must be"):
            parse_embed({"model": "m", "input": wrong})


NAMED = {"type": "object", "properties": {"a": {"type": "integer"}}}
SHUT = {**NAMED, "additionalProperties": False}


@pytest.mark.parametrize(("schema", "read"), [
    (NAMED, SHUT), ({"type": "array", "items": NAMED}, {"type": "array", "items": SHUT}),
    ({"$defs": {"A": NAMED}, "$ref": "#/$defs/A"}, {"$defs": {"A": SHUT}, "$ref": "#/$defs/A"}),
    ({"anyOf": [NAMED, {"type": "null"}]}, {"anyOf": [SHUT, {"type": "null"}]}),
    ({"type": "object", "properties": {"allOf": NAMED}},
     {"type": "object", "properties": {"allOf": SHUT}, "additionalProperties": False})])
def test_an_object_has_the_fields_that_its_schema_names(schema: dict[str, Any], read: dict[str, Any]) -> None:
    assert modern(schema) == read


@pytest.mark.parametrize("schema", [
    {**NAMED, "additionalProperties": {"type": "string"}},
    {**NAMED, "required": ["b"]}, {**NAMED, "required": [["b"]]}, {"properties": {}},
    {"allOf": [NAMED, {"properties": {"b": True}}]},
    {**NAMED, "anyOf": [{"required": ["a"]}, {"properties": {"b": True}}]}, {"type": "object"}, {"not": NAMED},
    {"$defs": {"A": NAMED}, "$ref": "#/$defs/A", "properties": {"b": True}}])
def test_an_object_of_several_schemas_stays_open(schema: dict[str, Any]) -> None:
    assert modern(schema) == schema
