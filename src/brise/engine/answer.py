"""One answer in progress: turns rows of logits into tokens, text and log-probabilities, and decides when to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from brise.engine import sampler
from brise.engine.request import Delta, FinishReason, Request, TokenLogprob
from brise.engine.sequence import Sequence
from brise.models.weights import Array
from brise.text.protocols import TextTokenizer
from brise.text.stream import TextStream

if TYPE_CHECKING:
    from brise.engine.constraint import AnswerConstraint
    from brise.engine.drafts import DraftSource


class EngineAnswer:
    """Answer `index` of a request. What it samples depends only on its logits, seed, index and position."""

    def __init__(self, request_id: str, index: int, request: Request, sequence: Sequence, *,
                 tokenizer: TextTokenizer, seed: int, max_tokens: int, constraint: AnswerConstraint | None,
                 sources: tuple[DraftSource, ...] = ()) -> None:
        self.sequence = sequence
        self.index = index
        self.prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None  # goes out with the next delta
        self.num_cached = 0
        self._request_id, self.request = request_id, request
        self._tokenizer, self._seed, self._max_tokens = tokenizer, seed, max_tokens
        self.constraint = constraint
        self._end_ids = request.stop_tokens | (frozenset() if request.ignore_eos else tokenizer.end_ids)
        self._adjust = sampler.adjustments(request.sampling, sequence.tokens[:sequence.num_prompt],
                                           tokenizer.vocab_size)
        self._stream = TextStream(request.stop, has_sentinels=bool(request.sentinels), keeps_stop=request.keeps_stop)
        self._num_tokens = 0
        self._drops_space = drops_space(request, tokenizer)
        self.draft_sources = sources

    @property
    def tokens(self) -> list[int]:
        """The answer's tokens so far."""
        tokens: list[int] = self.sequence.tokens[self.sequence.num_prompt:self.sequence.num_tokens].tolist()
        return tokens

    @property
    def num_left(self) -> int:
        """How many tokens it may still get."""
        return self._max_tokens - self._num_tokens

    def take(self, logits_V: Array) -> Delta:
        """Samples the next token from its logits and returns what is new."""
        if self._max_tokens == 0:
            return self.end("length")
        if self.constraint is not None:
            logits_V = self.constraint.apply(logits_V)
        if self._num_tokens < self.request.min_tokens and self._end_ids:
            logits_V = _without(logits_V, self._end_ids)
        sampling = self.request.sampling
        draw = sampler.uniform(self._seed, self.index, self._num_tokens) if sampling.temperature else 0.0
        token = sampler.pick(logits_V, sampling, draw, self._adjust)
        logprobs = () if self.request.logprobs is None else (
            token_logprob(self._tokenizer, logits_V, token, self.request.logprobs),)
        self._keep(token)
        return self._delta(token, logprobs)

    def end(self, finish: FinishReason, error: str | None = None) -> Delta:
        """The last delta, without another token."""
        return Delta(self._request_id, self.index, finish=finish, error=error,
                     prompt_tokens=self.sequence.num_prompt, cached_tokens=self.num_cached,
                     completion_tokens=self._num_tokens, prompt_logprobs=self._take_prompt_logprobs())

    def _keep(self, token: int) -> None:
        self.sequence.append(token)
        self._num_tokens += 1
        if self._adjust is not None:
            self._adjust.count(token)
        if self.constraint is not None:
            self.constraint.advance(token)

    def _delta(self, token: int, logprobs: tuple[TokenLogprob, ...]) -> Delta:
        stream = self._stream
        sentinel = self.request.sentinels.get(token)
        is_left_out = token in self.request.stop_tokens and not self.request.keeps_stop
        shown = b"" if is_left_out else self._shown(token)
        text = stream.push(shown) if sentinel is None else stream.sentinel(sentinel)
        if sentinel is not None:
            self._drops_space = self._tokenizer.drops_space_after(token)
        finish = self._finish(token)
        if finish is not None and stream.stopped is None:
            text += stream.finish()
        return Delta(self._request_id, self.index, text, (token,), logprobs, finish, stream.stopped, None,
                     self.sequence.num_prompt, self.num_cached, self._num_tokens,
                     None if self.prompt_logprobs is None else self._take_prompt_logprobs())

    def _shown(self, token: int) -> bytes:
        """What the token adds to the text, without the space that SentencePiece puts before one."""
        data = self._tokenizer.token_bytes(token)
        if self._drops_space and data:
            self._drops_space = False
            return data.removeprefix(b" ")
        return data

    def _finish(self, token: int) -> FinishReason | None:
        if token in self._end_ids or self._stream.stopped is not None:
            return "stop"
        if self.constraint is not None and self.constraint.is_complete:
            return "stop"
        return "length" if self._num_tokens == self._max_tokens else None

    def _take_prompt_logprobs(self) -> tuple[TokenLogprob | None, ...] | None:
        """The prompt's log-probabilities, for one delta only."""
        logprobs, self.prompt_logprobs = self.prompt_logprobs, None
        return logprobs


def _without(logits_V: Array, tokens: frozenset[int]) -> Array:
    """A copy in which these tokens are forbidden, unless no other is allowed."""
    out_V = logits_V.copy()
    out_V[list(tokens)] = -np.inf
    return out_V if np.isfinite(out_V).any() else logits_V


def drops_space(request: Request, tokenizer: TextTokenizer) -> bool:
    """Whether a space at the start of the answer is not the model's but SentencePiece's, which puts one before a text.
    """
    return tokenizer.drops_space_after(None if request.begins_text or not request.prompt else request.prompt[-1])


def token_logprob(tokenizer: TextTokenizer, logits_V: Array, token: int, num_top: int) -> TokenLogprob:
    """The log-probability of a token and of the best tokens. Special tokens have their names as text."""
    logprob, top = sampler.score(logits_V, token, num_top)
    return TokenLogprob(
        token, tokenizer.token_bytes(token, show_control=True), logprob,
        tuple((other, tokenizer.token_bytes(other, show_control=True), value) for other, value in top))
