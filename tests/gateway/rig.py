"""A gateway as a user has it: brise's server on a real socket, in front of a fake hosted model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from brise.gateway.breaker import Breaker
from brise.gateway.gateway import Gateway, Parts
from brise.gateway.hosted import Hosted, Wait
from brise.gateway.records import Answer, Exchange, Pending
from brise.gateway.retry import Retries, RetrySettings
from brise.gateway.upstream import Limits, Upstream, UpstreamSettings
from brise.serve.serving import ServeSettings
from tests.gateway.fake_upstream import FakeUpstream, fake_upstream
from tests.serve.live import Live, live, wait_until


@dataclass
class Memory:
    """A capture that keeps everything where a test can look at it."""

    exchanges: list[Exchange] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def record(self, exchange: Exchange, answers: Sequence[Answer] = (), pending: Sequence[Pending] = ()) -> None:
        self.answers += answers
        self.pending += pending
        self.exchanges.append(exchange)

    def skip(self, reason: Literal["off", "sampled"]) -> None:
        self.skipped.append(reason)

    def wait(self, number: int = 1) -> list[Exchange]:
        """Everything, as soon as there are so many: a row is written when its client has the answer already."""
        wait_until(lambda: len(self.exchanges) >= number)
        return self.exchanges


@dataclass(frozen=True)
class Rig:
    """The fake, the gateway's server, and what was captured."""

    fake: FakeUpstream
    live: Live
    captured: Memory


@contextmanager
def rig(limits: Limits | None = None, parts: Parts | None = None, settings: ServeSettings | None = None, *,
        key: str | None = None, path: str = "/v1", breaker: Breaker | None = None, retries: Retries | None = None,
        hedge_after_s: float | None = None, wait: Wait = asyncio.sleep) -> Iterator[Rig]:
    """Runs until the block ends. The local model is called "stub"; every other name is the fake's.

    Nothing is sent again, unless `retries` says so.
    """
    captured, settings = Memory(), settings or ServeSettings()
    with fake_upstream() as fake:
        url = f"http://127.0.0.1:{fake.port}{path}"
        upstream = Upstream(UpstreamSettings(url, key, settings.api_keys_path is None, limits or Limits()))
        hosted = Hosted(upstream, breaker=breaker, retries=retries or Retries(RetrySettings(retries=0)),
                        hedge_after_s=hedge_after_s, wait=wait)
        parts = parts or Parts()
        gateway = Gateway(hosted, parts if parts.capture is not None else replace(parts, capture=captured))
        with live(settings=settings, gateway=gateway) as running:
            yield Rig(fake, running, captured)
