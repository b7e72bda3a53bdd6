"""Rows hold the server's own tokens: what stands before an answer is the prompt that the server would make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.checkpoint.open import open_checkpoint
from brise.data.example import TrainingExample
from brise.data.render import rows_of
from brise.errors import RequestError
from brise.text.chat import ChatTemplate
from brise.text.load import Tokens, tokens_for
from brise.text.mistral import MistralTokenizer
from brise.text.mistral_chat import MistralChat
from tests.data.rows import CALL, FORGETS, LLAMA3, LLAMA3_CONTROL, TOOL, answers, chat, example, learned, served, tokens
from tests.engine.stub import byte_tokenizer
from tests.engine.stub_vision import stub_image
from tests.text import tekken
from tests.text.vocabulary import CHATML, MERGES

USER, AGAIN = {"role": "user", "content": "hi"}, {"role": "user", "content": "and?"}
ANSWER, OTHER = {"role": "assistant", "content": "ho"}, {"role": "assistant", "content": "so"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abcdefgh1", "content": "1"}
FORMATS = ("chatml", "llama3", "forgets", "tags", "v3", "v7", "v13")
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), min_size=1, max_size=9).map(
    lambda text: text + "<|im_end|>" if len(text) == 4 else text).filter(str.strip)


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tokens]:
    found = {"chatml": tokens(), "llama3": tokens(LLAMA3, LLAMA3_CONTROL, eos_token_id=1),
             "forgets": tokens(FORGETS, user_defined=("<think>", "</think>")),
             "tags": tokens("{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}" + CHATML)}
    for version in ("v3", "v7", "v13"):
        own = MistralTokenizer(tekken.write(tmp_path_factory.mktemp(version), version))
        found[version] = Tokens(own, MistralChat.of(own))
    return found


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, object]]:
    messages: list[dict[str, object]] = []
    if draw(st.booleans()):
        messages.append({"role": draw(st.sampled_from(["system", "developer"])), "content": draw(TEXT)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        if draw(st.booleans()):
            messages += [CALLS, {**RESULT, "content": draw(TEXT)}]
        thought = draw(st.none() | TEXT)
        messages.append({"role": "assistant", "content": draw(TEXT),
                         **({} if thought is None else {"reasoning_content": thought})})
    return messages


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=20)
@given(messages=conversations(), with_tools=st.booleans())
def test_before_every_answer_stands_the_servers_prompt(formats: Mapping[str, Tokens], name: str,
                                                       messages: list[dict[str, object]], with_tools: bool) -> None:
    own, tools = formats[name], [TOOL] if with_tools else []
    if name == "tags" and not with_tools:
        tools = [TOOL]
    rows = rows_of(example({"messages": messages, "tools": tools}), own)
    prompts = [row.tokens[:start].tolist() for row in rows for start, _ in answers(row)]
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    assert prompts == [list(served(own, messages[:index], tools)) for index in turns]
    assert all(row.tokens[end - 1] in own.tokenizer.end_ids for row in rows for _, end in answers(row))


def test_an_answer_is_learned_with_the_token_that_ends_it_and_nothing_behind() -> None:
    own = tokens()
    (row,) = rows_of(example({"messages": [USER, ANSWER, AGAIN, OTHER]}), own)
    shown = own.tokenizer.decode(row.tokens.tolist(), show_control=True)
    assert shown == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
                     "<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>")
    assert learned(row, own.tokenizer) == ["ho<|im_end|>", "so<|im_end|>"]


def test_a_format_that_forgets_makes_a_row_of_each_turn(formats: Mapping[str, Tokens]) -> None:
    thinking = [{**ANSWER, "reasoning_content": "hm"}, {**OTHER, "reasoning_content": "er"}]
    rows = rows_of(example({"messages": [USER, thinking[0], AGAIN, thinking[1]]}), formats["forgets"])
    tokenizer = formats["forgets"].tokenizer
    assert [learned(row, tokenizer) for row in rows] == [["<think>\nhm\n</think>\n\nho<|im_end|>"],
                                                         ["<think>\ner\n</think>\n\nso<|im_end|>"]]
    assert "hm" not in tokenizer.decode(rows[1].tokens.tolist())


def test_a_call_is_written_out_where_the_format_knows_none() -> None:
    own = tokens()
    (row,) = rows_of(example({"messages": [USER, CALLS, RESULT, ANSWER], "tools": [TOOL]}), own)
    call = '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
    assert learned(row, own.tokenizer) == [f"{call}<|im_end|>", "ho<|im_end|>"]
    shown = own.tokenizer.decode(row.tokens.tolist())
    assert "# Tools" in shown and "<tool_response>\n1\n</tool_response>" in shown


def test_mistrals_calls_are_learned_in_their_own_tokens(formats: Mapping[str, Tokens]) -> None:
    rows = rows_of(example({"messages": [USER, CALLS, RESULT, ANSWER], "tools": [TOOL]}), formats["v13"])
    texts = [text for row in rows for text in learned(row, formats["v13"].tokenizer)]
    assert texts == ['[TOOL_CALLS]add[ARGS]{"x": 1}</s>', "ho</s>"]


def test_an_answer_that_begins_with_the_prompts_last_letter_is_encoded_by_itself() -> None:
    own = tokens(words=("ĊĊ",), merges=[*MERGES, "Ċ Ċ"])
    whole = own.tokenizer.encode("assistant\n\n\nho")
    assert whole != own.tokenizer.encode("assistant\n") + own.tokenizer.encode("\n\nho")
    (row,) = rows_of(example(chat("hi", "\n\nho")), own)
    ((start, _),) = answers(row)
    assert tuple(row.tokens[:start]) == served(own, [USER])
    assert row.tokens[start:-1].tolist() == own.tokenizer.encode("\n\nho")
    assert learned(row, own.tokenizer) == ["\n\nho<|im_end|>"]


def test_a_message_of_weight_0_is_read_and_not_learned() -> None:
    own = tokens()
    (row,) = rows_of(example({"messages": [USER, {**ANSWER, "weight": 0}, AGAIN, {**OTHER, "weight": 1}]}), own)
    assert learned(row, own.tokenizer) == ["so<|im_end|>"]
    assert "ho" in own.tokenizer.decode(row.tokens.tolist())


def test_a_greeting_that_nothing_asked_for_is_not_learned() -> None:
    own = tokens()
    (row,) = rows_of(example({"messages": [ANSWER, USER, OTHER]}), own)
    assert learned(row, own.tokenizer) == ["so<|im_end|>"]


def test_all_tokens_but_the_first_are_learned_if_asked() -> None:
    (row,) = rows_of(example(chat("hi", "ho")), tokens(), targets="all")
    assert row.is_target.tolist() == [False] + [True] * (len(row.tokens) - 1)


def test_a_format_without_an_end_gets_the_end_of_all_text() -> None:
    own = tokens("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                 "{% if add_generation_prompt %}assistant: {% endif %}")
    (row,) = rows_of(example(chat("hi", "ho")), own)
    assert learned(row, own.tokenizer) == ["ho\n<|im_end|>"]


def test_a_format_that_rewrites_the_answer_is_refused() -> None:
    opens = CHATML.replace("assistant\\n", "assistant\\n<|im_start|>")
    with pytest.raises(RequestError, match="not the beginning of the finished conversation"):
        rows_of(example(chat("hi", "ho")), tokens(opens))


def test_text_is_prompt_completion_and_end() -> None:
    own = tokens(add_bos_token=True)
    pair = {"prompt": "the", "completion": " user<|im_end|>"}
    (row,) = rows_of(example(pair), own, as_text=True)
    assert own.tokenizer.decode(row.tokens.tolist(), show_control=True) == "<|endoftext|>the user<|im_end|><|im_end|>"
    assert row.tokens[-1] == 2 and row.num_targets == len(own.tokenizer.encode(" user<|im_end|>")) + 1


def test_the_tokens_of_an_image_are_never_learned() -> None:
    image, tokenizer = stub_image(1, 2), byte_tokenizer()
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what?"}]
    asked = TrainingExample(({"role": "user", "content": content}, ANSWER), "a:1", "c")
    (row,) = rows_of(asked, Tokens(tokenizer, ChatTemplate(CHATML, tokenizer)), targets="all")
    is_image = np.isin(row.tokens, image.tokens)
    assert row.images == (image,) and is_image.sum() == 3
    assert not row.is_target[is_image].any() and row.is_target[1:][~is_image[1:]].all()


def test_rows_are_plain_arrays() -> None:
    (row,) = rows_of(example(chat("hi", "ho"), place="a.jsonl:7"), tokens())
    assert (row.tokens.dtype, row.is_target.dtype, row.place) == (np.int32, np.bool_, "a.jsonl:7")


def test_the_real_model_learns_what_it_would_have_to_write(smollm2_path: Path) -> None:
    own = tokens_for(open_checkpoint(smollm2_path))
    messages = [USER, CALLS, RESULT, ANSWER]
    (row,) = rows_of(example({"messages": messages, "tools": [TOOL]}), own)
    for index, (start, _) in zip((1, 3), answers(row), strict=True):
        assert tuple(row.tokens[:start]) == served(own, messages[:index], [TOOL])
    assert learned(row, own.tokenizer)[1] == "ho<|im_end|>"
