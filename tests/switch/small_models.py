"""A small model for tests of the gateway: it says what the test tells it, as sure as the test wants."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from brise.dialects.bodies import Body, Usage
from brise.dialects.dialect import Dialect
from brise.engine.request import TokenLogprob
from brise.errors import RequestError
from brise.gateway.small_models import Load, SmallAnswer, SmallStream
from brise.switch.rule import Rule, RuleBaseline, Term, from_body, to_body
from tests.gateway.fake_answers import chat_body, chat_events

Says = Callable[[Body], tuple[str, float]]  # from a request to an answer's text and its log-probability


@dataclass
class FakeSmall:
    """Implements SmallModels. `asked` are the bodies that came."""

    says: Says
    error: str | None = None
    version: str = "f1"
    asked: list[Body] = field(default_factory=list)

    def names(self) -> Sequence[str]:
        return ["small"]

    def fingerprint(self, model: str) -> str:
        return self.version

    def load(self, model: str) -> Load:
        return Load(0, 0, 1)

    async def answer(self, model: str, dialect: Dialect, body: Body, *, logprobs: int | None = None,
                     background: bool = False) -> SmallAnswer:
        text, logprob = self._say(body)
        tokens = (TokenLogprob(1, text.encode(), logprob, ((1, text.encode(), logprob), (2, b"?", logprob - 1))),)
        return SmallAnswer({**chat_body(text), "model": model}, Usage(5, 1), tokens if logprobs is not None else ())

    async def stream(self, model: str, dialect: Dialect, body: Body, *, prefix: str | None = None) -> SmallStream:
        return SmallStream(self._chunks(self._say(body)[0]))

    async def _chunks(self, text: str) -> AsyncGenerator[Body, None]:
        for event in chat_events(text):
            if isinstance(event, dict):
                yield event

    def _say(self, body: Body) -> tuple[str, float]:
        self.asked.append(body)
        if self.error is not None:
            raise RequestError(self.error)
        return self.says(body)


def rule(threshold: float = 0.5, tight: float = 0.7, **changes: object) -> Rule:
    """Confidence is the logistic of the answer's log-probability plus 1: 0.5 at -1."""
    plain = Rule(task="calls", candidate="small", terms=(Term("logprob", 0.0, 1.0, 1.0),), bias=1.0,
                 threshold=threshold, tight=tight, risk=0.05,
                 delta=0.05, kept=0.8, bound=0.05, method="sgr", units=1000, clusters=1000,
                 since_s=0.0, until_s=1.0, rung="fidelity", scorer="auto",
                 baseline=RuleBaseline((0.3, 0.6), (0.2, 0.3, 0.5), 0.01, 0.2, 0.03, 1000))
    return from_body(to_body(replace(plain, **changes)))  # type: ignore[arg-type]
