"""The gate prompts of a bundle: what was asked when it was shipped, and what was answered, token by token.

A line of gate.jsonl is a prompt: its messages, and the greedy answer, with the log-probability of each token and
those of the most likely ones beside it. Tokens are known by their bytes, as servers show them, so a token that ends
the answer and is no part of it is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brise.fleet.refusals import BundleError
from brise.fleet.strict_json import canonical, read

MOST_PROMPTS, MOST_TOKENS, MOST_TOP = 1000, 1024, 20
MOST_BYTES = 64 << 20  # of the file
MOST_LINE_BYTES = 8 << 20
TEMPERATURE = 0.0  # greedy: the answer depends on nothing but the model


@dataclass(frozen=True)
class GateChoice:
    """A token that could have come at one place: its bytes, hexadecimal, and its log-probability in nats."""

    text: str
    logprob: float

    def __post_init__(self) -> None:
        try:
            bytes.fromhex(self.text)
        except ValueError:
            raise BundleError("a token's text", self.text, "hexadecimal digits") from None
        if not self.logprob <= 0:
            raise BundleError("logprob", self.logprob, "at most 0")


@dataclass(frozen=True)
class GateToken:
    """A token of the shipped answer, and the most likely ones at its place, itself among them."""

    text: str
    logprob: float
    top: tuple[GateChoice, ...]

    def __post_init__(self) -> None:
        GateChoice(self.text, self.logprob)
        if not 1 <= len(self.top) <= MOST_TOP:
            raise BundleError("number of a token's alternatives", len(self.top), f"1 to {MOST_TOP}")


@dataclass(frozen=True)
class GatePrompt:
    """One prompt and its answer of at most `max_tokens` tokens; `tools` are the functions that it may call."""

    messages: tuple[Mapping[str, Any], ...]
    max_tokens: int
    tokens: tuple[GateToken, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def body(self) -> dict[str, Any]:
        """What asks for the answer (see `gate_body`)."""
        return gate_body(self.messages, self.tools, self.max_tokens)

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= MOST_TOKENS:
            raise BundleError("max_tokens", self.max_tokens, f"1 to {MOST_TOKENS}")
        if not 1 <= len(self.tokens) <= self.max_tokens:
            raise BundleError("number of tokens", len(self.tokens), f"1 to {self.max_tokens}")


def gate_body(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]],
              max_tokens: int) -> dict[str, Any]:
    """What asks for the answer to a gate prompt: the fields of a chat completion but for the model."""
    body: dict[str, Any] = {"messages": [dict(message) for message in messages], "temperature": TEMPERATURE,
                            "max_tokens": max_tokens, "logprobs": True, "top_logprobs": MOST_TOP}
    return body | ({"tools": [dict(tool) for tool in tools]} if tools else {})


def gate_bytes(prompts: Iterable[GatePrompt]) -> bytes:
    """The file."""
    return b"".join(canonical(prompt) + b"\n" for prompt in prompts)


def read_gate(data: bytes) -> tuple[GatePrompt, ...]:
    """The prompts of a file whose digest was verified; BundleError names the line and what is wrong with it."""
    if len(data) > MOST_BYTES:
        raise BundleError("size of gate.jsonl", len(data), f"{MOST_BYTES} bytes")
    lines = data.splitlines()
    if not 1 <= len(lines) <= MOST_PROMPTS:
        raise BundleError("number of gate prompts", len(lines), f"1 to {MOST_PROMPTS}")
    return tuple(read(GatePrompt, line, f"gate.jsonl, line {number}", MOST_LINE_BYTES)
                 for number, line in enumerate(lines, 1))
