"""Tokens as servers count them: every spelling, whole and streamed, and counts that cannot be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.dialects import table
from brise.dialects.bodies import Usage
from brise.dialects.streams import assemble
from brise.dialects.table import named
from brise.dialects.token_counts import of_messages, of_openai, shown
from brise.traffic.prices import Price

CASES: list[tuple[str, dict[str, Any], Usage]] = [
    ("OpenAI", {"prompt_tokens": 2006, "completion_tokens": 300, "total_tokens": 2306, "prompt_tokens_details": {
        "cached_tokens": 1920, "audio_tokens": 0}, "completion_tokens_details": {"reasoning_tokens": 64}},
     Usage(2006, 300, 1920, reasoning_tokens=64)),
    ("OpenAI with nothing more", {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9,
                                  "prompt_tokens_details": None}, Usage(7, 2)),
    ("OpenAI audio", {"prompt_tokens": 50, "completion_tokens": 40, "prompt_tokens_details": {"audio_tokens": 30},
                      "completion_tokens_details": {"audio_tokens": 25}},
     Usage(50, 40, audio_prompt_tokens=30, audio_completion_tokens=25)),
    ("Responses", {"input_tokens": 75, "input_tokens_details": {"cached_tokens": 32, "cache_write_tokens": 8},
                   "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 4}, "total_tokens": 84},
     Usage(75, 9, 32, 8, reasoning_tokens=4)),
    ("an embedding", {"prompt_tokens": 5, "total_tokens": 5}, Usage(5, 0)),
    ("DeepSeek", {"prompt_tokens": 100, "completion_tokens": 5, "prompt_cache_hit_tokens": 64,
                  "prompt_cache_miss_tokens": 36}, Usage(100, 5, 64)),
    ("Mistral", {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "num_cached_tokens": 96},
     Usage(100, 5, 96)),
    ("Moonshot", {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "cached_tokens": 64},
     Usage(100, 5, 64)),
    ("OpenRouter", {"prompt_tokens": 10339, "completion_tokens": 60, "total_tokens": 10399, "cost": 0.01,
                    "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 10318}},
     Usage(10339, 60, 0, 10318)),
    ("LiteLLM", {"prompt_tokens": 14307, "completion_tokens": 550, "total_tokens": 14857, "prompt_tokens_details": {
        "cached_tokens": 12304, "cache_creation_tokens": 2000, "cache_creation_token_details": {
            "ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 1500}},
        "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 12304},
     Usage(14307, 550, 12304, 2000, 1500)),
    ("xAI leaves reasoning out", {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 111,
                                  "completion_tokens_details": {"reasoning_tokens": 100}},
     Usage(10, 101, reasoning_tokens=100)),
    ("Gemini leaves thoughts out", {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 430}, Usage(10, 420)),
    ("the cache left out of the prompt", {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 108,
                                          "cache_read_input_tokens": 100}, Usage(103, 5, 100)),
    ("Anthropic's own names", {"input_tokens": 3, "output_tokens": 5, "cache_read_input_tokens": 100},
     Usage(103, 5, 100))]


@pytest.mark.parametrize(("who", "usage", "right"), CASES, ids=[case[0] for case in CASES])
def test_every_server_s_spelling(who: str, usage: dict[str, Any], right: Usage) -> None:
    assert of_openai({"usage": usage}) == right


@pytest.mark.parametrize(("usage", "right"), [
    ({"input_tokens": 3, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": 12304, "output_tokens": 550},
     Usage(14307, 550, 12304, 2000)),
    ({"input_tokens": 3, "cache_creation_input_tokens": 2000, "cache_read_input_tokens": None, "output_tokens": 5,
      "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 1600}},
     Usage(2003, 5, 0, 2000, 1600)),
    ({"input_tokens": 3, "output_tokens": 5, "cache_creation": {"ephemeral_1h_input_tokens": 16}},
     Usage(19, 5, 0, 16, 16)),
    ({"input_tokens": 3, "output_tokens": -5}, Usage(3, None)),
    ({"input_tokens": 3, "cache_read_input_tokens": "many", "output_tokens": 5}, Usage(None, 5, None)),
    ({"input_tokens": 3, "cache_creation_input_tokens": 1.5, "output_tokens": 5}, Usage(None, 5, 0, None, None))])
def test_messages_count_the_cache_apart(usage: dict[str, Any], right: Usage) -> None:
    assert of_messages({"usage": usage}) == right


@pytest.mark.parametrize(("usage", "right"), [
    ({"prompt_tokens": -1, "completion_tokens": 2}, Usage(None, 2)),
    ({"prompt_tokens": 1.5, "completion_tokens": 2}, Usage(None, 2)),
    ({"prompt_tokens": "12", "completion_tokens": True}, None),
    ({"prompt_tokens": 2**70, "completion_tokens": 2}, Usage(None, 2)),
    ({"prompt_tokens": 7}, Usage(7, None)),
    ({"prompt_tokens": 90, "completion_tokens": 2, "total_tokens": 12}, Usage(None, 2)),
    ({"prompt_tokens": 9, "completion_tokens": 90, "total_tokens": 12}, None),
    ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 10**12}, None),
    ({"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -3}}, Usage(7, 2, None)),
    ({"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}}, Usage(7, 2, None)),
    ({"prompt_tokens": 7, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 3}}, Usage(7, 2)),
    ({"prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": [3]}, Usage(7, 2)),
    ({}, None), ([], None), (None, None), ("many", None)])
def test_what_cannot_be_is_unknown(usage: object, right: Usage | None) -> None:
    assert of_openai({"usage": usage}) == right


@pytest.mark.parametrize("chunk", [
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}},
    {"choices": [], "x_groq": {"id": "r", "usage": {"prompt_tokens": 7, "completion_tokens": 2}}},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop",
                  "usage": {"prompt_tokens": 7, "completion_tokens": 2}}]}])
def test_a_stream_s_count_stands_in_its_last_chunk(chunk: dict[str, Any]) -> None:
    first = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}], "usage": None}
    stream = b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in (first, chunk)) + b"data: [DONE]\n\n"
    assert table.CHAT.usage(assemble(table.CHAT, stream).body or {}) == Usage(7, 2)


def messages_stream(start: dict[str, Any], *deltas: dict[str, Any]) -> bytes:
    events = [{"type": "message_start", "message": {"id": "m", "type": "message", "content": [], "usage": start}},
              *({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": each} for each in deltas)]
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)


@pytest.mark.parametrize(("start", "deltas", "right"), [
    ({"input_tokens": 110, "output_tokens": 1}, [{"output_tokens": 9}], Usage(110, 9)),
    ({"input_tokens": 0, "output_tokens": 0}, [{"input_tokens": 110, "output_tokens": 9}], Usage(110, 9)),
    ({"input_tokens": 110, "output_tokens": 1}, [{"input_tokens": 0, "output_tokens": 4}, {"output_tokens": 9}],
     Usage(110, 9)),
    ({"input_tokens": 10, "cache_read_input_tokens": 100, "output_tokens": 1},
     [{"cache_read_input_tokens": None, "output_tokens": 9}], Usage(110, 9, 100)),
    ({"input_tokens": 110, "output_tokens": 1}, [], Usage(110, None)),
    ({"input_tokens": 110, "output_tokens": 1}, [{"output_tokens": "nine"}], Usage(110, None))])
def test_a_stream_of_messages_counts_at_its_beginning_and_at_its_end(
        start: dict[str, Any], deltas: list[dict[str, Any]], right: Usage) -> None:
    body = assemble(table.MESSAGES, messages_stream(start, *deltas)).body
    assert table.MESSAGES.usage(body or {}) == right


LEAVES = st.one_of(st.none(), st.integers(-3, 50), st.integers(), st.floats(), st.booleans(), st.text(max_size=3))
NAMES = st.sampled_from(sorted({name for _, usage, _ in CASES for place in (usage, *(
    value for value in usage.values() if isinstance(value, dict))) for name in place} | {
        "input_tokens", "output_tokens", "cache_creation", "ephemeral_1h_input_tokens"}))
USAGES = st.recursive(LEAVES, lambda inner: st.one_of(
    st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=8)), max_leaves=20)


@given(USAGES, st.sampled_from(["chat", "completion", "responses", "messages", "embedding"]))
def test_no_body_fails_and_the_parts_make_the_whole(usage: Any, kind: Any) -> None:
    found = named(kind).usage({"usage": usage})
    if found is None:
        return
    counts = [count for name, count in vars(found).items() if name != "reasoning_tokens" and count is not None]
    assert all(type(count) is int and count >= 0 for count in counts) and shown(found) is not None
    if (plain := found.plain_prompt_tokens) is not None:
        parts = (found.cached_tokens, found.cache_write_tokens, found.audio_prompt_tokens)
        assert plain >= 0 and found.prompt_tokens == plain + sum(part or 0 for part in parts)
    cost = Price(1, 2, 0.1, 1.25, 2, 3, 4).of(found)
    assert cost is None or cost >= 0
    assert cost is not None or None in (found.plain_prompt_tokens, found.completion_tokens,
                                        found.cache_write_1h_tokens, found.audio_completion_tokens)
