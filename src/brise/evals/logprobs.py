"""Reads the log-probabilities in answers of servers with OpenAI's API, which spell them in several ways.

A chat has `content`: a list of tokens with `token`, `bytes`, `logprob` and `top_logprobs`. A completion has lists side
by side (`tokens`, `token_logprobs`, `top_logprobs`), or a chat's `content` too. vLLM names tokens `token_id:7` if asked
to, llama.cpp adds `id`; servers write -9999 for a probability of zero, and null for none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

ROUNDING = 1e-3  # that a log-probability of 0 may be off; more is no log-probability
ID_PREFIX = "token_id:"


@dataclass(frozen=True)
class NamedToken:
    """A token as a server names it: its bytes, its log-probability and, from servers that tell it, its id."""

    bytes: bytes
    logprob: float
    id: int | None = None


@dataclass(frozen=True)
class NamedStep:
    """One step of an answer: the token that was chosen, and the most likely ones."""

    chosen: NamedToken
    top: tuple[NamedToken, ...] = ()


def steps_of(logprobs: object) -> list[NamedStep | None]:
    """The steps of a choice's `logprobs`; None stands for one whose chosen token cannot be read. An alternative that
    cannot be read is left out."""
    if not isinstance(logprobs, Mapping):
        return []
    content = logprobs.get("content")
    if isinstance(content, list) and content:
        return [_step(item, item.get("top_logprobs")) if isinstance(item, Mapping) else None for item in content]
    tokens, values, tops = (_list(logprobs.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    if len(tops) != len(tokens):
        tops = []
    return [_step({"token": token, "logprob": value}, [{"token": name, "logprob": other} for name, other in top.items()]
                  if isinstance(top, Mapping) else None)
            for token, value, top in zip_longest(tokens, values, tops)]


def _step(item: Mapping[str, object], tops: object) -> NamedStep | None:
    chosen = _token(item)
    if chosen is None:
        return None
    named = (_token(top) for top in _list(tops) if isinstance(top, Mapping))
    return NamedStep(chosen, tuple(top for top in named if top is not None))


def _token(item: Mapping[str, object]) -> NamedToken | None:
    logprob, given, id = item.get("logprob"), item.get("bytes"), item.get("id")
    if not isinstance(logprob, int | float) or isinstance(logprob, bool) or math.isnan(logprob) or logprob > ROUNDING:
        return None
    name = str(item.get("token", ""))
    if name.startswith(ID_PREFIX) and name.removeprefix(ID_PREFIX).isdecimal():
        id = int(name.removeprefix(ID_PREFIX))
    is_bytes = isinstance(given, list) and all(type(byte) is int and 0 <= byte < 256 for byte in given)
    said = bytes(given) if is_bytes and isinstance(given, list) and given else name.encode(errors="replace")
    return NamedToken(said, float(logprob), id if type(id) is int else None)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
