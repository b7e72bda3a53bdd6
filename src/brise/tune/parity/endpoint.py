"""Parity of a server: whether any engine with OpenAI's API predicts what the trained model predicts.

A server shows the tokens that it chose and its most likely ones, not its logits. So it is asked for greedy answers to
held-out prompts with log-probabilities, and the trained model reads prompt and answer: each predicts every token after
the same tokens. Tokens are matched by their bytes, which ids are not needed for.

The KL divergence is a lower bound: over the tokens that the server names and one outcome for all others. Merging
outcomes never makes a divergence larger (the data processing inequality), so a server that exceeds the limit by this
figure exceeds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from brise.data.example import EncodedRow, TrainingExample
from brise.data.render import prompt_of
from brise.errors import EvidenceError
from brise.evals.logprobs import NamedToken
from brise.models.batch import Batch
from brise.quant.quality import QuantQuality
from brise.text.load import Tokens
from brise.tune.packing import pack
from brise.tune.parity.openai_server import ServerAnswer, ServerClient
from brise.tune.parity.parity import ParityError, Tolerance, numbers
from brise.tune.parity.served import GuidedSide, pieces

TOP = 20  # most likely tokens that are asked for: OpenAI's limit, and vLLM's
LEAST = 1e-7  # probability of all other tokens: servers round log-probabilities to about this

PromptTokens = Literal["same", "same number", "other", "unknown"]
Logprobs = NDArray[np.float64]


@dataclass(frozen=True)
class PromptParity:
    """One prompt. `tokens`: whether the server read the tokens that the model was trained on ("same number" where it
    only counts them); `compared` answer tokens, with the mean KL (nats a token, a lower bound) and the share that
    agrees; `note` says why there are none, or fewer than the answer has."""

    place: str
    tokens: PromptTokens
    compared: int
    kl: float | None
    agreement: float | None
    note: str | None = None


@dataclass(frozen=True)
class EndpointReport:
    """A server against the trained model. `quality` (original: trained, quantised: served) is None where the server
    gives no log-probabilities; its KL is a lower bound over `top` tokens. `base_kl` is the mean KL from the base
    without the adapter: a server that is no farther from that does not serve the adapter."""

    url: str
    model: str
    prompts: tuple[PromptParity, ...]
    quality: QuantQuality | None
    base_kl: float | None
    tolerance: Tolerance
    top: int

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """What exceeds the tolerance, with the numbers."""
        others = [prompt for prompt in self.prompts if prompt.tokens == "other"]
        failures = [] if not others else [
            f"{len(others)} of {len(self.prompts)} prompts are encoded to other tokens than were trained on"]
        if self.quality is None:
            notes = sorted({prompt.note for prompt in self.prompts if prompt.note})
            return [*failures, "no prediction could be compared: " + "; ".join(notes)]
        failures += self.tolerance.exceeded(self.quality)
        if self.base_kl is not None and self.base_kl <= self.quality.kl_mean:
            failures.append(f"the server is no farther from the base without the adapter (mean KL {self.base_kl:.3g}) "
                            f"than from the trained model ({self.quality.kl_mean:.3g})")
        return failures

    @property
    def where(self) -> str | None:
        """Where to look first."""
        other = next((prompt for prompt in self.prompts if prompt.tokens == "other"), None)
        if other is not None:
            return f"the chat template: {other.place}: {other.note}"
        compared = [prompt for prompt in self.prompts if prompt.kl is not None]
        if self.passed or not compared or self.quality is None:
            return None
        if self.base_kl is not None and self.base_kl <= self.quality.kl_mean:
            return f"is the adapter loaded, and does --name name it? {self.model!r} was asked"
        worst = max(compared, key=lambda prompt: prompt.kl or 0.0)
        return f"the prompts are the same; the most differs {worst.place}, with a mean KL of {worst.kl:.3g} over " \
               f"{worst.compared} tokens: other weights, another adapter, or too few bits"

    def as_json(self) -> dict[str, object]:
        """The whole report, as --json prints it."""
        return {"passed": self.passed, "failures": self.failures, "where": self.where, "endpoint": self.url,
                "model": self.model, "top": self.top, "tolerance": asdict(self.tolerance),
                "adapted": None if self.quality is None else numbers(self.quality), "base_kl_mean": self.base_kl,
                "prompts": [asdict(prompt) for prompt in self.prompts]}

    def check(self) -> EndpointReport:
        """Returns the report, or raises ParityError if it did not pass."""
        if not self.passed:
            raise ParityError(self)
        return self


@dataclass(frozen=True)
class TrainedModel:
    """The trained model, the base without its adapter (None: no such base), and their tokenizer and chat format."""

    side: GuidedSide
    base: GuidedSide | None
    tokens: Tokens


def compare_endpoint(trained: TrainedModel, client: ServerClient, examples: Sequence[TrainingExample], *,
                     max_tokens: int, tolerance: Tolerance,
                     progress: Callable[[int], None] = lambda count: None) -> EndpointReport:
    """Asks the server for an answer to each example's last prompt, and compares. A difference raises nothing."""
    if not examples:
        raise EvidenceError("there is no held-out conversation to compare the server on")
    ids = TokenIds(trained.tokens)
    prompts, compared = [], []
    for example in examples:
        prompt, predictions = _compare(trained, ids, client, example, max_tokens)
        prompts.append(prompt)
        compared += [predictions] if predictions is not None else []
        progress(1)
    # What the kernels of another engine change on the base alone is not known.
    limits = replace(tolerance, max_times_base=None)
    quality = _quality(compared) if compared else None
    base_kl = None if trained.base is None or not compared else float(
        np.concatenate([each.base_divergences for each in compared]).mean())
    return EndpointReport(client.endpoint.url, client.endpoint.model, tuple(prompts), quality, base_kl, limits,
                          client.top)


class TokenIds:
    """Which tokens of the vocabulary have these bytes: usually one, and the trained model's probabilities are summed
    where there are several."""

    def __init__(self, tokens: Tokens) -> None:
        tokenizer = tokens.tokenizer
        self.size = tokenizer.vocab_size
        self._ids: dict[bytes, list[int]] = {}
        for token in range(self.size):
            self._ids.setdefault(tokenizer.token_bytes(token, show_control=True), []).append(token)
        for name, token in tokenizer.control.items():
            self._ids.setdefault(name.encode(), [token])

    def of(self, predicted: NamedToken) -> list[int]:
        """The ids, or none for bytes that no token has: half a character that the server shows as U+FFFD."""
        if predicted.id is not None and 0 <= predicted.id < self.size:
            return [predicted.id]
        return self._ids.get(predicted.bytes, []) if predicted.bytes else []


@dataclass(frozen=True)
class _Compared:
    """Of T tokens: KL from the trained model and from its base, agreement, and minus the log-probability of the
    server's token, trained and served."""

    divergences: Logprobs
    base_divergences: Logprobs
    agreements: NDArray[np.bool_]
    nll: Logprobs  # (2, T)


def _compare(trained: TrainedModel, ids: TokenIds, client: ServerClient, example: TrainingExample,
             max_tokens: int) -> tuple[PromptParity, _Compared | None]:
    tokens = trained.tokens
    prompt = prompt_of(example, tokens)
    last = max(index for index, message in enumerate(example.messages) if message["role"] == "assistant")
    answer = client.answer(example.messages[:last], example.tools, prompt, example.place, max_tokens)
    read, note = _prompt_tokens(client, example, last, prompt, tokens, answer)
    if answer.problem is not None:
        return PromptParity(example.place, read, 0, None, None, note or answer.problem), None
    steps, chosen = _known(answer.steps, ids)
    if not chosen:
        return PromptParity(example.place, read, 0, None, None, note or "no token of the answer is one of the "
                                                                        "model's vocabulary"), None
    predictions = _predictions(trained, prompt, chosen, steps, ids)
    note = note or (None if len(chosen) == len(answer.steps) else
                    f"the answer's token {len(chosen) + 1} has no bytes that the vocabulary knows")
    return PromptParity(example.place, read, len(chosen), float(predictions.divergences.mean()),
                        float(predictions.agreements.mean()), note), predictions


def _prompt_tokens(client: ServerClient, example: TrainingExample, last: int, prompt: Sequence[int], tokens: Tokens,
                   answer: ServerAnswer) -> tuple[PromptTokens, str | None]:
    """Whether the server reads the same prompt, from its /tokenize or else from the count of the answer."""
    read = client.prompt_tokens(example.messages[:last], example.tools, example.place)
    if read is not None:
        if list(read) == list(prompt):
            return "same", None
        index = next((place for place, (one, other) in enumerate(zip(read, prompt, strict=False)) if one != other),
                     min(len(read), len(prompt)))
        texts = ["|".join(tokens.tokenizer.token_text(token).replace("\n", "\\n")
                          for token in side[max(0, index - 4):index + 6] if 0 <= token < tokens.tokenizer.vocab_size)
                 for side in (prompt, read)]
        return "other", f"token {index} differs; trained: {texts[0]}; served: {texts[1]}"
    if answer.prompt_tokens is None:
        return "unknown", None
    if answer.prompt_tokens == len(prompt):
        return "same number", None
    return "other", f"the server read {answer.prompt_tokens} tokens, trained were {len(prompt)}"


def _known(steps: Sequence[Sequence[NamedToken]], ids: TokenIds) -> tuple[Sequence[Sequence[NamedToken]], list[int]]:
    """The steps up to the first whose chosen token is not known, and the chosen tokens."""
    chosen = []
    for step in steps:
        known = ids.of(step[0])
        if not known:
            break
        chosen.append(known[0])
    return steps[:len(chosen)], chosen


def _predictions(trained: TrainedModel, prompt: Sequence[int], chosen: Sequence[int],
                 steps: Sequence[Sequence[NamedToken]], ids: TokenIds) -> _Compared:
    row = EncodedRow(np.array([*prompt, *chosen], np.int32),
                     np.arange(len(prompt) + len(chosen)) >= len(prompt), "answer")
    packed, count = pack([row], shares=False), len(chosen)
    compared = _Compared(np.zeros(count), np.zeros(count), np.zeros(count, bool), np.zeros((2, count)))
    served = [[(ids.of(each), each.logprob) for each in step] for step in steps]
    for index, logprobs_V in enumerate(_logprobs(trained.side, packed.batch, count)):
        compared.divergences[index] = least_kl(logprobs_V, served[index])
        likeliest = max(steps[index], key=lambda each: each.logprob)
        compared.agreements[index] = int(logprobs_V.argmax()) in ids.of(likeliest)
        compared.nll[:, index] = -logprobs_V[chosen[index]], -steps[index][0].logprob
    if trained.base is not None:
        for index, logprobs_V in enumerate(_logprobs(trained.base, packed.batch, count)):
            compared.base_divergences[index] = least_kl(logprobs_V, served[index])
    return compared


def _logprobs(side: GuidedSide, batch: Batch, count: int) -> Iterator[Logprobs]:
    """The log-probabilities (V,) of each of `count` rows of a batch."""
    hidden_TD = side.hidden(batch)
    for part in pieces(count, side.config.vocab_size):
        logits_TV = side.logits(hidden_TD[part]).astype(np.float64)
        largest = logits_TV.max(axis=1, keepdims=True)
        yield from logits_TV - (largest + np.log(np.exp(logits_TV - largest).sum(axis=1, keepdims=True)))


def least_kl(trained_V: Logprobs, served: Sequence[tuple[Sequence[int], float]]) -> float:
    """The KL divergence (nats) of the served from the trained distribution over the tokens that `served` names, each
    with its ids and its log-probability, and one outcome for all others: a lower bound of the whole."""
    named: dict[tuple[int, ...], float] = {tuple(ids): logprob for ids, logprob in served if ids}
    p = np.array([np.exp(trained_V[list(ids)]).sum() for ids in named])
    q = np.exp(np.array(list(named.values())))
    p, q = np.append(p, max(1.0 - p.sum(), 0.0)), np.append(q, max(1.0 - q.sum(), LEAST))
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return max(float(terms.sum()), 0.0)


def _quality(compared: Sequence[_Compared]) -> QuantQuality:
    divergences = np.concatenate([each.divergences for each in compared])
    means = np.array([each.divergences.mean() for each in compared])
    trained, served = np.exp(np.concatenate([each.nll for each in compared], axis=1).mean(axis=1))
    error = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return QuantQuality(len(divergences), len(means), float(trained), float(served), float(divergences.mean()), error,
                        float(divergences.max()), float(np.concatenate([each.agreements for each in compared]).mean()))

