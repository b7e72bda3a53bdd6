"""A parsed request becomes an engine request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brise.checkpoint.generation import Generation
from brise.engine.model import LoadedModel
from brise.engine.request import Request, Sampling
from brise.errors import RequestError
from brise.serve.anthropic_messages import parse_message
from brise.serve.openai_chat import parse_chat
from brise.serve.openai_completions import parse_completion
from brise.serve.prompts import chat_job, completion_requests
from brise.text.chat import ChatTemplate
from brise.text.inputs import PartialSampling
from brise.text.special_tokens import CALL, END_CALL
from brise.text.tokenizer import Tokenizer
from tests.engine.stub import CHATML, IM_END, IM_START, stub_model
from tests.serve.test_parse_chat import TOOL, USER

TOOLS_TEMPLATE = "{% if tools %}<tool_call>{% endif %}" + CHATML


def chat(model: LoadedModel, **fields: object) -> Request:
    return chat_job(parse_chat({"model": "m", "messages": USER, **fields}), model).request  # type: ignore[dict-item]


def text(model: LoadedModel, request: Request) -> str:
    return model.tokenizer.decode(request.prompt, show_control=True)


def test_text_of_a_message_never_becomes_a_special_token() -> None:
    request = chat(stub_model(), messages=[{"role": "user", "content": "<|im_end|>"}])
    assert request.prompt.count(IM_END) == 1 and request.prompt.count(IM_START) == 2


def test_tools_are_described_in_the_system_message_of_a_template_that_knows_none() -> None:
    model = stub_model()
    without, with_tools = chat(model), chat(model, tools=[TOOL])
    assert "<tools>" not in text(model, without) and without.grammar is None
    assert text(model, with_tools).startswith("<|im_start|>system\n# Tools")
    assert with_tools.grammar is not None and not with_tools.sentinels
    own = chat(model, tools=[TOOL], messages=[{"role": "system", "content": "Be brief."}, *USER])
    assert text(model, own).startswith("<|im_start|>system\nBe brief.\n\n# Tools")


def test_a_template_that_knows_tools_gets_them() -> None:
    model = stub_model()
    model = replace(model, chat=ChatTemplate(TOOLS_TEMPLATE, model.tokenizer))
    assert text(model, chat(model, tools=[TOOL])).startswith("<tool_call><|im_start|>user")
    assert text(model, chat(model, tools=[TOOL], tool_choice="none")).startswith("<|im_start|>user")


def test_calls_have_sentinels_where_their_tags_are_special_tokens() -> None:
    model = replace(stub_model(), tokenizer=_with_call_tokens())
    request = chat(replace(model, chat=ChatTemplate(CHATML, model.tokenizer)), tools=[TOOL], stop="x")
    assert request.sentinels == {259: CALL, 260: END_CALL} and request.stop == ("x",)


def test_special_tokens_in_a_raw_prompt_are_text_unless_requested() -> None:
    def prompt(**fields: object) -> tuple[int, ...]:
        body = {"model": "m", "prompt": "<|im_end|>", **fields}
        return completion_requests(parse_completion(body), stub_model())[0].prompt  # type: ignore[arg-type]

    assert prompt() == tuple(b"<|im_end|>")
    assert prompt(parse_control=True) == (IM_END,)


def test_only_echo_with_logprobs_scores_the_prompt() -> None:
    def scored(**fields: object) -> int | None:
        body = {"model": "m", "prompt": "a", **fields}
        return completion_requests(parse_completion(body), stub_model())[0].prompt_logprobs  # type: ignore[arg-type]

    assert scored(echo=True, logprobs=0) == 0
    assert scored(echo=True) is scored(logprobs=2) is None


def _with_call_tokens() -> Tokenizer:
    """The stub's tokenizer, with the tags of calls as special tokens."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]
    return Tokenizer.from_gguf({
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.merges": [],
        "tokenizer.ggml.tokens": [*symbols, "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>",
                                  "</tool_call>"],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 5, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 256, "tokenizer.ggml.eot_token_id": 258})


THINKING = CHATML + ("{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
                     "<think></think>{% endif %}{{ style }}")


@pytest.mark.parametrize("fields", [
    {"reasoning_effort": "none"}, {"enable_thinking": False}, {"think": False}, {"thinking": {"type": "disabled"}},
    {"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning": {"enabled": False}},
    {"reasoning": {"effort": "none"}}])
def test_a_template_with_a_switch_is_told_not_to_think(fields: dict[str, object]) -> None:
    model = replace(stub_model(), chat=ChatTemplate(THINKING, stub_model().tokenizer))
    assert text(model, chat(model, **fields)).endswith("<think></think>")
    assert not text(model, chat(model)).endswith("<think></think>")


@pytest.mark.parametrize(("fields", "param"), [
    ({"reasoning_effort": "low"}, "reasoning_effort"), ({"enable_thinking": True}, "enable_thinking"),
    ({"think": True}, "think"), ({"think": "high"}, "think"), ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"chat_template_kwargs": {"other": 1}}, "chat_template_kwargs.other")])
def test_a_template_without_a_switch_refuses_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(stub_model(), **fields)
    assert caught.value.param == param
    off = chat(stub_model(), reasoning_effort="none", enable_thinking=False, think=False)
    assert off.prompt == chat(stub_model()).prompt


def test_what_a_variable_of_the_template_says_is_text() -> None:
    model = replace(stub_model(), chat=ChatTemplate(THINKING, stub_model().tokenizer))
    request = chat(model, chat_template_kwargs={"style": "brief<|im_end|>"})
    assert text(model, request).endswith("brief<|im_end|>") and request.prompt.count(IM_END) == 1


def test_tools_go_into_the_users_message_where_a_template_takes_no_system_message() -> None:
    source = ("{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system role') }}"
              "{% endif %}{% endfor %}") + CHATML
    model = replace(stub_model(), chat=ChatTemplate(source, stub_model().tokenizer))
    prompt = text(model, chat(model, tools=[TOOL]))
    assert prompt.startswith("<|im_start|>user\n# Tools") and "\n\nhi<|im_end|>" in prompt
    with pytest.raises(RequestError, match="no system role"):
        chat(model, tools=[TOOL], messages=[{"role": "system", "content": "a"}, *USER])


def test_a_cut_call_is_rendered_as_it_was_written() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x'}}
    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c1", "content": "fix it"}]
    assert '<tool_call>\n{"name": "add", "arguments": {"x\n</tool_call>' in text(
        stub_model(), chat(stub_model(), messages=messages, tools=[TOOL]))


def test_what_a_request_leaves_out_is_as_the_models_files_say() -> None:
    own = PartialSampling(0.6, 20, 0.95, repetition_penalty=1.05)
    model = replace(stub_model(), generation=Generation(own, "generation_config.json"))
    assert chat(model).sampling == Sampling(0.6, 20, 0.95, repetition_penalty=1.05)
    assert chat(model, temperature=1, repeat_penalty=1).sampling == Sampling(1.0, 20, 0.95)
    assert chat(model, temperature=0).sampling == Sampling(0.0)
    (request,) = completion_requests(parse_completion({"model": "m", "prompt": "a"}), model)
    message = chat_job(parse_message({"model": "m", "max_tokens": 5, "top_k": 3, "messages": USER}), model).request
    assert (request.sampling.top_k, message.sampling.top_k, message.sampling.top_p) == (20, 3, 0.95)
    assert chat(stub_model()).sampling == Sampling()
