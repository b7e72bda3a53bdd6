"""Validation of requests to the engine: each error names the field, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

from brise.engine.request import Request, Sampling
from brise.errors import ContextLengthError, RequestError

_MAX_ANSWERS = 128
_MAX_LOGPROBS = 128
_SEED_RANGE = 1 << 63


def check(request: Request, vocab_size: int, limit: int) -> int:
    """The largest number of tokens that the answer may have; `limit` applies to prompt and answer together."""
    check_tokens(request.prompt, vocab_size)
    _within("n", request.n, 1, _MAX_ANSWERS)
    for name, value in (("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)):
        if value is not None:
            _within(name, value, 0, min(_MAX_LOGPROBS, vocab_size))
    if "" in request.stop:
        raise RequestError("stop holds an empty string", param="stop")
    for token in request.stop_tokens:
        if not 0 <= token < vocab_size:
            raise RequestError(f"stop_token_ids has {token}; tokens go from 0 to {vocab_size - 1}",
                               param="stop_token_ids")
    _check_choices(request, vocab_size)
    if request.deadline_s is not None and not 0 < request.deadline_s < inf:
        raise RequestError(f"the deadline is {request.deadline_s} s, it must be over 0", param="deadline_ms")
    _check_sampling(request.sampling, vocab_size)
    if request.max_tokens is not None:
        _within("max_tokens", request.max_tokens, 0, inf)
    # Without max_tokens, an answer needs room for at least one token.
    least = 1 if request.max_tokens is None else request.max_tokens
    if len(request.prompt) + least > limit:
        raise ContextLengthError(len(request.prompt), request.max_tokens, limit)
    return limit - len(request.prompt) if request.max_tokens is None else request.max_tokens


def _check_choices(request: Request, vocab_size: int) -> None:
    for place, choice in enumerate(request.token_choices):
        if not choice or not 0 <= min(choice) <= max(choice) < vocab_size:
            raise RequestError(f"the tokens that are allowed at place {place} must be some of 0 to {vocab_size - 1}",
                               param="token_choices")
    if request.token_choices and request.grammar is not None:
        raise RequestError("an answer has a grammar or choices of tokens, not both", param="token_choices")


def check_tokens(prompt: Sequence[int], vocab_size: int) -> None:
    """RequestError unless there is at least one token, and all are in the vocabulary."""
    if not prompt:
        raise RequestError("the prompt is empty", param="prompt")
    for token in (min(prompt), max(prompt)):
        if not 0 <= token < vocab_size:
            raise RequestError(f"token {token} does not exist; the vocabulary has {vocab_size}",
                               param="prompt")


def _check_sampling(sampling: Sampling, vocab_size: int) -> None:
    _within("temperature", sampling.temperature, 0, inf)
    _within("top_k", sampling.top_k, 0, inf)
    _within("top_p", sampling.top_p, 0, 1)
    _within("min_p", sampling.min_p, 0, 1)
    _within("presence_penalty", sampling.presence_penalty, -inf, inf)
    _within("frequency_penalty", sampling.frequency_penalty, -inf, inf)
    if not 0 < sampling.repetition_penalty < inf:
        raise RequestError(f"repetition_penalty is {sampling.repetition_penalty}, it must be above 0",
                           param="repetition_penalty")
    _within("repeat_last_n", sampling.repeat_last_n, -1, inf)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocab_size or not isfinite(bias):
            raise RequestError(f"logit_bias has {token}: {bias}; tokens go from 0 to {vocab_size - 1}, "
                               "biases are finite", param="logit_bias")
    if sampling.seed is not None:
        _within("seed", sampling.seed, -_SEED_RANGE, _SEED_RANGE - 1)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high or not isfinite(value):
        raise RequestError(f"{name} is {value}, allowed is {low} to {high}", param=name)
