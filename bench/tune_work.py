"""The work of bench/tune_peft.py: rows, their order and the first A matrices, made once and read by both workers.

Rows are rendered with transformers' tokenizer, so that neither trainer's own preparation is measured.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Settings:
    """What both trainers are told. Weight decay, dropout and clipping are off; the loss is the mean over targets."""

    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    batch: int = 8


@dataclass(frozen=True)
class Work:
    """`rows[i]`: tokens and which of them are learned; `order` (steps, batch): rows of each step."""

    rows: list[tuple[Ints, npt.NDArray[np.bool_]]]
    order: Ints


def render(model: Path, data: Path, count: int, system: str | None) -> list[tuple[list[int], int]]:
    """Tokens of the first `count` conversations, and where each answer begins."""
    from transformers import AutoTokenizer  # noqa: PLC0415  (only the parent needs it, and only here)

    tokenizer: Any = AutoTokenizer.from_pretrained(str(model))
    rows = []
    for line in data.read_text(encoding="utf-8").splitlines()[:count]:
        messages = json.loads(line)["messages"]
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages[1:]]
        *prompt, answer = messages
        assert answer["role"] == "assistant"
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(messages, return_dict=False)
        assert whole[:len(head)] == head
        rows.append((whole, len(head)))
    return rows


def long_system(model: Path, tools: Path, num_tokens: int) -> str:
    """A system prompt of about `num_tokens` tokens: the beginning of the tools' description."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    tokenizer: Any = AutoTokenizer.from_pretrained(str(model))
    text: str = tokenizer.decode(tokenizer(tools.read_text(encoding="utf-8"))["input_ids"][:num_tokens])
    return text


def write(path: Path, rows: list[tuple[list[int], int]], steps: int, batch: int, seed: int) -> None:
    """The file that `read` reads; rows are drawn in turn, in a shuffled order."""
    rng = np.random.default_rng(seed)
    rounds = -(-steps * batch // len(rows))
    drawn = np.concatenate([rng.permutation(len(rows)) for _ in range(rounds)])[:steps * batch]
    np.savez(path, tokens=np.concatenate([np.array(tokens, np.int32) for tokens, _ in rows]),
             lengths=np.array([len(tokens) for tokens, _ in rows], np.int32),
             answers=np.array([answer for _, answer in rows], np.int32),
             order=drawn.reshape(steps, batch).astype(np.int32))


def read(path: Path) -> Work:
    with np.load(path) as file:
        starts = np.concatenate([[0], np.cumsum(file["lengths"])])
        tokens, answers, order = file["tokens"], file["answers"], file["order"]
    rows = [(tokens[first:last], np.arange(last - first) >= answer)
            for first, last, answer in zip(starts[:-1], starts[1:], answers, strict=True)]
    return Work(rows, order)


def first_a(layer: int, target: str, rank: int, width: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """The first A (r, in) of one matrix: uniform in +-1/sqrt(in), as PEFT draws it; B is zero."""
    rng = np.random.default_rng([seed, layer, TARGETS.index(target)])
    return rng.uniform(-(width ** -0.5), width ** -0.5, (rank, width)).astype(np.float32)
