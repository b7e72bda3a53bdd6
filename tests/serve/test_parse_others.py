"""Every field of legacy completions, embeddings and responses is honoured, or refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from openai.resources.completions import Completions
from openai.resources.embeddings import Embeddings
from openai.resources.responses import Responses

from brise.errors import RequestError
from brise.serve.embeddings import EmbeddingRequest, parse_embedding
from brise.serve.openai_completions import CompletionRequest, parse_completion
from brise.serve.openai_responses import ResponseRequest, parse_response
from brise.text.inputs import Grammar

CLIENT_ONLY = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


def completion(**fields: object) -> CompletionRequest:
    return parse_completion({"model": "m", "prompt": "a", **fields})  # type: ignore[dict-item]


def embedding(**fields: object) -> EmbeddingRequest:
    return parse_embedding({"model": "m", "input": "a", **fields})  # type: ignore[dict-item]


def response(**fields: object) -> ResponseRequest:
    return parse_response({"model": "m", "input": "a", **fields})  # type: ignore[dict-item]


def param(parse: Callable[..., object], **fields: object) -> str | None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    return caught.value.param


def test_prompts_come_in_four_shapes() -> None:
    assert completion(prompt="a").prompts == ("a",)
    assert completion(prompt=["a", "b"]).prompts == ("a", "b")
    assert completion(prompt=[1, 2]).prompts == ((1, 2),)
    assert completion(prompt=[[1], [2]]).prompts == ((1,), (2,))


@pytest.mark.parametrize(("prompt", "place"), [
    (None, "prompt"), ([], "prompt"), ([1, "a"], "prompt"), ([1, -1], "prompt"), ([True], "prompt"),
    (5, "prompt"), ({}, "prompt"), ([[1], "a", 5], "prompt[2]"), ([1.5], "prompt[0]"),
    ([["a"]], "prompt[0]")])
def test_other_prompts_are_refused(prompt: object, place: str) -> None:
    assert param(completion, prompt=prompt) == place


def test_completion_defaults_and_limits() -> None:
    assert (completion().max_tokens, completion().echo, completion().logprobs) == (16, False, None)
    assert completion(max_tokens=0, echo=True, logprobs=0).max_tokens == 0
    assert param(completion, max_tokens=0) == "max_tokens"
    assert param(completion, prompt=["a"] * 65, n=2) == "prompt"


def test_completion_refusals() -> None:
    assert completion(best_of=2, n=2, suffix="").options.n == 2
    assert param(completion, best_of=2) == "best_of"
    assert param(completion, suffix="x") == "suffix"
    assert param(completion, logprobs=True) == "logprobs"
    assert param(completion, messages=[]) == "messages"


def test_embedding_fields() -> None:
    assert embedding(encoding_format="base64", dimensions=5).encoding == "base64"
    assert param(embedding, encoding_format="int8") == "encoding_format"
    assert param(embedding, input=[]) == "input"
    assert param(embedding, truncate=True) == "truncate"


def test_response_input_is_a_chat() -> None:
    request = response(instructions="be", input=[
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "b", "annotations": []}]}])
    assert [(m.role, m.content) for m in request.chat.messages] == [("system", "be"), ("user", "a"),
                                                                     ("assistant", "b")]


def test_response_format() -> None:
    text = {"format": {"type": "json_schema", "name": "a", "strict": True, "schema": {"type": "object"}}}
    assert response(text=text).chat.grammar == Grammar("json_schema", '{"type": "object"}', strict=True)


@pytest.mark.parametrize(("field", "value"), [
    ("previous_response_id", "r"), ("tools", [{"type": "web_search"}]), ("background", True),
    ("tool_choice", "required"), ("include", ["x"]), ("truncation", "auto"), ("reasoning", {"effort": "low"}),
    ("conversation", "c"), ("prompt", {"id": "p"}), ("max_tool_calls", 1), ("top_logprobs", 1),
    ("input", []), ("input", 5), ("instructions", 5), ("foo", 1)])
def test_response_refusals(field: str, value: object) -> None:
    assert param(response, **{field: value}) == field


@pytest.mark.parametrize(("create", "parse"), [
    (Completions.create, completion), (Embeddings.create, embedding), (Responses.create, response)])
def test_every_field_of_the_official_client_is_known(create: Callable[..., object],
                                                     parse: Callable[..., object]) -> None:
    for name in inspect.signature(create).parameters.keys() - CLIENT_ONLY:
        try:
            parse(**{name: {"?": "?"}})
        except RequestError as error:
            assert error.code != "unknown_parameter" or error.param != name, name
