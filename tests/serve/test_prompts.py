"""A parsed request becomes an engine request."""

from __future__ import annotations

from dataclasses import replace

from brise.engine.model import LoadedModel
from brise.engine.request import Request
from brise.serve.openai_chat import parse_chat
from brise.serve.openai_completions import parse_completion
from brise.serve.prompts import chat_job, completion_requests
from brise.text.chat import ChatTemplate
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
