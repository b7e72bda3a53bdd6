"""What tests of speculation share: a source that knows the answers, costs that make drafts pay, what a client sees."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from brise.engine.request import Delta
from brise.engine.step_cost import StepLoad


class Oracle:
    """Drafts from known answers; `wrong` of 8 tokens are others. With `sure`, it says that all are right."""

    name = "oracle"

    def __init__(self, answers: dict[tuple[int, ...], list[list[int]]], wrong: int = 0) -> None:
        self.answers, self.wrong = answers, wrong

    def start(self, prompt: Sequence[int]) -> OracleState:
        return OracleState(self.answers.get(tuple(prompt), []), self.wrong)


class OracleState:
    def __init__(self, answers: list[list[int]], wrong: int) -> None:
        self.answers, self.wrong, self.tokens = answers, wrong, list[int]()

    def extend(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens

    def propose(self, most: int) -> tuple[list[int], list[float]]:
        at = len(self.tokens)
        for known in self.answers:
            if known[:at] == self.tokens:
                tokens = [self.spoiled(token, at + index) for index, token in enumerate(known[at:at + most + 1])]
                return tokens, [0.9] * len(tokens)
        return [], []

    def spoiled(self, token: int, place: int) -> int:
        digest = blake2b(bytes([place % 256, len(self.tokens) % 256]), digest_size=1).digest()[0]
        return token if digest % 8 >= self.wrong else (token + 1) % 250


class LinearCost:
    """A token takes `slope` times as long as a step of one token; at 0 every draft pays, at 1 none does."""

    def __init__(self, slope: float = 0.0) -> None:
        self.slope = slope

    def seconds(self, load: StepLoad) -> float:
        return 1.0 + self.slope * (load.tokens - 1)


def contents(deltas: list[Delta]) -> list[object]:
    """What a client sees of an answer, piece by piece."""
    return [(delta.text, delta.tokens, delta.logprobs, delta.finish, delta.stop_string, delta.completion_tokens,
             delta.prompt_logprobs) for delta in deltas]
