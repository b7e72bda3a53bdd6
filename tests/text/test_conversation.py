"""A conversation for a template that knows tools, and for one that does not."""

from __future__ import annotations

from brise.text.chat import ChatTemplate
from brise.text.conversation import encoded, plain_text, with_system, written_out
from brise.text.tool_calls import tool_system_prompt
from tests.text.vocabulary import CHATML, tokenizer

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
USER = {"role": "user", "content": "hi"}
CALLS = {"role": "assistant", "content": "so", "tool_calls": [
    {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]}
RESULT = {"role": "tool", "content": "2", "tool_call_id": "c1"}
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'


def shown(template: str, **more: object) -> str:
    own = tokenizer()
    tokens = encoded(ChatTemplate(template, own), [USER, CALLS, RESULT], [TOOL],
                     **more).tokens  # type: ignore[arg-type]
    return own.decode(tokens, show_control=True)


def test_calls_and_results_are_text_for_a_template_without_tools() -> None:
    assert shown(CHATML) == (
        f"<|im_start|>system\n{tool_system_prompt([TOOL])}<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        f"<|im_start|>assistant\nso\n{CALL_TEXT}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n2\n</tool_response><|im_end|>\n<|im_start|>assistant\n")
    assert shown(CHATML, add_generation_prompt=False).endswith("</tool_response><|im_end|>\n")


def test_a_template_with_tools_gets_them_as_they_are() -> None:
    template = ("{{ tools | length }}<tool_call>"
                "{% for m in messages %}{{ m.role }}{{ m.tool_calls | length }} {% endfor %}")
    assert shown(template) == "1<tool_call>user0 assistant1 tool0 "


def test_a_cut_call_has_no_arguments_where_the_template_wants_an_object() -> None:
    own, cut = tokenizer(), {"role": "assistant", "content": "so", "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x'}}]}
    for arguments, written in (("c.function.arguments | items | list", "[]"), ("c.function.arguments", '{"x')):
        template = ("{% for m in messages %}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}{{ "
                    f"{arguments} }}}}{{% endfor %}}{{% endfor %}}{{{{ tools | length }}}}")
        assert own.decode(encoded(ChatTemplate(template, own), [USER, cut, RESULT], [TOOL]).tokens,
                          show_control=True) == f"<tool_call>add{written}1"


def test_a_call_without_words_is_the_call_alone() -> None:
    assert written_out({**CALLS, "content": ""}) == {"role": "assistant", "content": CALL_TEXT}
    assert written_out(USER) is USER


def test_a_text_goes_behind_the_system_message_that_is_there() -> None:
    parts = [{"type": "text", "text": "be"}]
    assert with_system([USER], "x") == [{"role": "system", "content": "x"}, USER]
    assert with_system([{"role": "system", "content": "be"}, USER], "x")[0]["content"] == "be\n\nx"
    assert with_system([{"role": "system", "content": parts}], "x")[0]["content"] == [
        *parts, {"type": "text", "text": "\n\nx"}]


def test_plain_text_leaves_thoughts_out() -> None:
    thought = {"type": "thinking", "thinking": "hm"}
    assert plain_text([thought, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == "a\nb"
    assert (plain_text(None), plain_text("a")) == ("", "a")
