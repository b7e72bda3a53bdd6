"""A chat answer is the same as a stream and as a body, whatever the model writes and wherever it is split."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.engine.request import Delta, FinishReason, Request
from brise.serve.chat import ChatChoice
from brise.serve.generation import Entry
from brise.serve.prompts import ChatJob
from brise.text.answer_format import AnswerFormat
from brise.text.stream import TextStream
from brise.text.tokenizer import Tokenizer
from tests.text.vocabulary import tokenizer

CONTROL = ("<s>", "</s>", "[INST]", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")
TAGS = ("<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
MISTRAL, QWEN = tokenizer(control=CONTROL), tokenizer(control=TAGS[:1], user_defined=TAGS[1:])
FORMATS = {"named": (MISTRAL, AnswerFormat.of(MISTRAL, "named")), "list": (MISTRAL, AnswerFormat.of(MISTRAL, "list")),
           "tags": (QWEN, AnswerFormat.of(QWEN, "tags"))}
WORDS = st.sampled_from([*CONTROL, *TAGS, "add", '{"x": 1}', "[", "]", '{"name": "add", "arguments": ', "}", "\n", " ",
                         "text", "é", '"', "\\", "\ufdd0", "\ufdd2", '[TOOL_CALLS]add[ARGS]{"x": 1}',
                         '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'])


def texts(format: AnswerFormat, tok: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """The engine's text for each token."""
    stream = TextStream((), has_sentinels=True)
    sentinels = format.sentinels
    shown = [stream.sentinel(sentinels[token]) if token in sentinels else stream.push(tok.token_bytes(token))
             for token in tokens]
    return [*shown, stream.finish()]


def run(tok: Tokenizer, job: ChatJob, pieces: Sequence[str], finish: FinishReason) -> tuple[list[Entry], Entry]:
    choice = ChatChoice(0, tok, job, logprobs=None)
    entries = [entry for piece in pieces for entry in choice.push(Delta("r", 0, piece))]
    entries += choice.push(Delta("r", 0, finish=finish))
    return entries, choice.final()


def assemble(entries: Sequence[Entry]) -> Entry:
    """The message that a client assembles from a stream."""
    text, reasoning, calls = "", "", list[Entry]()
    for entry in entries:
        delta = copy.deepcopy(entry["delta"])
        assert isinstance(delta, dict)
        text += delta.get("content", "")
        reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", []):
            if "id" in call:
                calls.append(call["function"])
            else:
                calls[call["index"]]["arguments"] += call["function"]["arguments"]  # type: ignore[operator]
    return {"text": text, "reasoning": reasoning, "calls": calls, "finish": entries[-1]["finish_reason"]}


def of_body(final: Entry) -> Entry:
    message = final["message"]
    assert isinstance(message, dict)
    return {"text": message["content"] or "", "reasoning": message.get("reasoning_content", ""),
            "calls": [call["function"] for call in message.get("tool_calls", [])], "finish": final["finish_reason"]}


@pytest.mark.parametrize("kind", FORMATS)
@given(st.lists(WORDS, max_size=10), st.booleans(), st.booleans(), st.sampled_from(["stop", "length"]), st.data())
def test_any_cut_of_the_tokens_gives_one_message(kind: str, words: list[str], has_tools: bool, is_thinking: bool,
                                                 finish: FinishReason, draw: st.DataObject) -> None:
    tok, format = FORMATS[kind]
    job = ChatJob(Request((0,)), format, ("add",) if has_tools else (), is_thinking)
    pieces = texts(format, tok, [token for word in words for token in tok.encode(word, parse_control=True)])
    entries, final = run(tok, job, pieces, finish)
    assert assemble(entries) == of_body(final)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(pieces)), max_size=5)))
    recut = ["".join(pieces[start:end]) for start, end in pairwise([0, *cuts, len(pieces)])]
    assert of_body(run(tok, job, recut, finish)[1]) == of_body(final)
    assert has_tools or of_body(final)["calls"] == []
