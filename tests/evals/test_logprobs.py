"""Log-probabilities in all the spellings of servers."""

from __future__ import annotations

from typing import Any

import pytest

from brise.evals.logprobs import NamedStep, NamedToken, steps_of

A, B = NamedToken(b"a", -0.5), NamedToken(b"b", -1.5)


@pytest.mark.parametrize("logprobs", [
    {"content": [{"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [{"token": "b", "logprob": -1.5}]}]},
    {"content": [], "tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.5}]},
    {"content": None, "tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"b": -1.5}], "text_offset": [0]},
    {"content": [{"token": "a", "logprob": -0.5, "top_logprobs": [
        7, None, {"token": "b", "logprob": -1.5}, {"token": "c", "logprob": None}, {"token": "d", "logprob": 0.2}]}]}])
def test_chats_and_completions_say_the_same(logprobs: object) -> None:
    assert steps_of(logprobs) == [NamedStep(A, (B,))]


@pytest.mark.parametrize(("item", "token"), [
    ({"token": "?", "id": 97, "bytes": [255], "logprob": -9999.0}, NamedToken(b"\xff", -9999.0, 97)),  # llama.cpp
    ({"token": "token_id:97", "logprob": -1}, NamedToken(b"token_id:97", -1.0, 97)),  # vLLM
    ({"token": "token_id:x", "logprob": 0}, NamedToken(b"token_id:x", 0.0)),
    ({"token": "\ud800", "bytes": [256], "logprob": 1e-4}, NamedToken(b"?", 1e-4)),
    ({"token": "a", "bytes": [], "logprob": -0.5, "id": True}, A)])
def test_tokens_are_named_in_several_ways(item: dict[str, Any], token: NamedToken) -> None:
    assert steps_of({"content": [item]}) == [NamedStep(token)]


@pytest.mark.parametrize("value", [None, True, "-0.5", float("nan"), 0.5])
def test_what_is_no_log_probability_is_a_step_that_cannot_be_read(value: object) -> None:
    assert steps_of({"content": [{"token": "a", "logprob": value}, {"token": "a", "logprob": -0.5}]}) == [
        None, NamedStep(A)]
    assert steps_of({"tokens": ["x", "a"], "token_logprobs": [value, -0.5]}) == [None, NamedStep(A)]


@pytest.mark.parametrize(("logprobs", "steps"), [
    (None, []), ([], []), ({}, []), ({"content": 7}, []), ({"tokens": "a", "token_logprobs": {}}, []),
    ({"content": [7]}, [None]), ({"tokens": ["a", "b"], "token_logprobs": [-0.5]}, [NamedStep(A), None]),
    ({"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [7]}, [NamedStep(A)])])
def test_any_shape_is_read(logprobs: object, steps: list[NamedStep | None]) -> None:
    assert steps_of(logprobs) == steps
