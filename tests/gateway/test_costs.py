"""What a request cost: whoever answered it, and unknown where tokens or prices are."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from brise.dialects.bodies import Usage
from brise.gateway.exchange import answer_of, priced
from brise.gateway.failure import UpstreamError
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.large_model import LargeModel
from brise.gateway.request import ClientRequest, read
from brise.gateway.upstream import Upstream, UpstreamSettings
from brise.gateway.upstreams import Routes, Upstreams
from brise.traffic.prices import Price, Prices
from brise.traffic.records import Mode
from tests.gateway.fake_answers import MODEL
from tests.gateway.fake_upstream import FakeUpstream, answer, fake_upstream

PRICES = Prices({"big": Price(2, 10), "eu/big": Price(3, 10), "mine": Price(0.5, 0.5), MODEL: Price(1, 1)})


def request(model: str = "big", upstream: str = "") -> ClientRequest:
    body = b'{"model": "%s", "messages": [{"role": "user", "content": "hi"}]}' % model.encode()
    return replace(read("POST", "/v1/chat/completions", b"/v1/chat/completions", [], body), upstream=upstream)


@pytest.mark.parametrize(("mode", "served_by", "usage", "usd"), [
    ("hosted", "big-2026", Usage(100, 10), 300e-6), ("escalated", None, Usage(100, 10), 300e-6),
    ("hosted", "big", None, None), ("hosted", "big", Usage(100, None), None), ("failed", "big", Usage(100, None), None),
    ("small", "tiny", Usage(100, 10), 0.0), ("small", "tiny", None, 0.0), ("small", "mine", Usage(100, 10), 55e-6),
    ("degraded", "tiny", Usage(100, 10), 0.0), ("small", "mine", Usage(100, None), None)])
def test_an_answer_s_cost(mode: Mode, served_by: str | None, usage: Usage | None, usd: float | None) -> None:
    outcome = priced(RequestOutcome(mode, 200, served_by, usage=usage), request(), PRICES)
    assert outcome.cost_usd == (None if usd is None else pytest.approx(usd))


def test_without_prices_only_the_small_model_s_cost_is_known() -> None:
    assert priced(RequestOutcome("hosted", 200, "big", usage=Usage(1, 1)), request(), None).cost_usd is None
    assert priced(RequestOutcome("small", 200, "tiny"), request(), None).cost_usd == 0


def test_nobody_knows_what_the_beginning_of_a_continued_answer_cost() -> None:
    continued = RequestOutcome("degraded", 200, "tiny", usage=Usage(5, 5), is_continued=True)
    assert priced(continued, request(), PRICES).cost_usd is None


@pytest.mark.parametrize(("model", "upstream", "usd"), [
    ("big", "", 200e-6), ("big", "eu", 300e-6), ("eu/big", "eu", 300e-6), ("us/big", "us", 200e-6),
    ("us/big", "", None)])
def test_a_model_may_cost_more_at_one_upstream(model: str, upstream: str, usd: float | None) -> None:
    outcome = priced(RequestOutcome("hosted", 200, None, usage=Usage(100, 0)), request(model, upstream), PRICES)
    assert outcome.cost_usd == (None if usd is None else pytest.approx(usd))


def test_what_the_large_model_is_asked_in_the_background_is_paid_too() -> None:
    with fake_upstream() as fake:
        outcome = asyncio.run(asked(fake))
    assert outcome.cost_usd == pytest.approx(11e-6)
    assert answer_of(request(), "audit", 0.0, outcome, 1.0).cost_usd == outcome.cost_usd
    draft = RequestOutcome("small", 200, "tiny", usage=Usage(5, 5))
    assert answer_of(request(), "draft", 0.0, draft, 1.0).cost_usd == 0


def test_a_failed_attempt_that_counted_tokens_is_paid_too() -> None:
    answered = RequestOutcome("hosted", 200, "big", usage=Usage(100, 10), lost=(Usage(100, 0),))
    assert priced(answered, request(), PRICES).cost_usd == pytest.approx(500e-6)
    replaced = RequestOutcome("degraded", 200, "tiny", usage=Usage(100, 10), lost=(Usage(100, 0),))
    assert priced(replaced, request(), PRICES).cost_usd == pytest.approx(200e-6)
    assert priced(replaced, request("other"), PRICES).cost_usd is None
    failed = RequestOutcome("failed", 502, error="no answer", lost=(Usage(100, 0),))
    assert priced(failed, request(), PRICES).cost_usd == pytest.approx(200e-6)
    assert priced(replace(failed, lost=()), request(), PRICES).cost_usd is None


def test_an_answer_that_is_none_says_what_it_cost() -> None:
    with fake_upstream() as fake:
        fake.then(answer({"choices": None, "usage": {"prompt_tokens": 100, "completion_tokens": 0}}))
        with pytest.raises(UpstreamError) as failed:
            asyncio.run(asked(fake))
    assert failed.value.delivery is not None and failed.value.delivery.lost == [Usage(100, 0)]


async def asked(fake: FakeUpstream) -> RequestOutcome:
    large = Upstreams({"": LargeModel(Upstream(UpstreamSettings(fake.url)))}, Routes(), PRICES)
    try:
        return await large.ask(request())
    finally:
        large.close()
