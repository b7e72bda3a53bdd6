"""What a request with a virtual key may cost, whether it may begin, and what it did cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from brise.dialects import ollama
from brise.dialects.bodies import Body, Usage
from brise.gateway.request import ClientRequest
from brise.serve.error_response import KeyForbiddenError
from brise.serve.in_flight import RequestStats
from brise.serve.key_guard import KeyGuard, Reservation
from brise.traffic.key_budgets import NANO, Amounts
from brise.traffic.prices import Prices
from brise.traffic.records import Exchange
from brise.traffic.virtual_keys import VirtualKey

BYTES_A_TOKEN = 4  # of JSON; English text has a little more, code and other scripts less
MOST_PROMPT, USUAL_ANSWER, MOST_ANSWER = 50_000, 1000, 1_000_000  # tokens: an image is many bytes and few tokens
# Per token, where prices.toml has no model at all: USD 10 and 50 a million, as the dearest large models took in 2026.
UNPRICED_INPUT_USD, UNPRICED_OUTPUT_USD = 10e-6, 50e-6
MOST_TOKENS, MOST_NANO_USD = 10**12, 10**15  # of one request: a server may claim any number, and sums must not overflow
SETTLE_WITHIN_S = 60.0  # for an exchange that is never told of: a defect of ours must not hold a reservation for ever
# Failures before anything was asked, or that the upstream itself reports: nothing is charged for them.
FREE_FAILURES = ("refused:", "connect_timeout:", "open:", "status:")
LIMIT_FIELDS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
OPTION_LIMIT = "num_predict"  # among the `options` of Ollama's API
LIST, METRICS, ADAPTERS = "/v1/models", "/metrics", "/v1/adapters"


@dataclass(eq=False)
class Charge:
    """What one request of a virtual key has reserved, until it is settled."""

    reservation: Reservation
    model: str
    estimate: Usage
    upstream: str = ""  # whose prices apply
    exchange: str | None = None  # its id, if the gateway writes one
    is_settled: bool = False


@dataclass(eq=False)
class KeyCaller:
    """Who sends one request, and what it has reserved, once it was let begin."""

    key: VirtualKey
    charge: Charge | None = None


class KeyAdmission(Collector):
    """Lets requests begin, and counts what they cost. It observes the gateway's exchanges."""

    def __init__(self, guard: KeyGuard, prices: Prices | None, *, is_required: bool = False) -> None:
        self.guard, self._prices, self._is_required = guard, prices or Prices(), is_required
        self._charges: dict[str, Charge] = {}  # of exchanges that are to come

    @property
    def is_required(self) -> bool:
        """Whether requests need a key: always, or because the store has a virtual key, or had one."""
        return self._is_required or self.guard.has_keys

    async def admit(self, key: VirtualKey, model: str, estimate: Usage, *, is_local: bool,
                    upstream: str = "") -> Charge:
        """Reserves what a request may cost; KeyLimitError if that is too much."""
        usd = self._local_cost(model, estimate) if is_local else self._guess(model, estimate, upstream)
        need = Amounts(1, _tokens(estimate), _nano(usd) if _tokens(estimate) else 0)
        return Charge(await self.guard.reserve(key, need), model, estimate, upstream)

    async def admit_read(self, caller: KeyCaller, asked: ClientRequest, model: str, *, is_local: bool,
                         upstream: str = "") -> None:
        """The same for a request that is read; of a gateway's, the exchange that follows settles it.

        `model` is the name by which the server is asked, without that of an upstream.
        """
        key = self.guard.current(caller.key)
        check_models(key, asked, is_local=is_local)
        is_answered = asked.dialect.is_read or asked.method == "POST"
        estimate = estimate_of(asked.fields, len(asked.body), is_embedding=asked.kind == "embedding")
        charge = await self.admit(key, model, estimate if is_answered else Usage(), is_local=is_local,
                                  upstream=upstream)
        if is_answered and not is_local:
            charge.exchange = asked.id
            self._charges[asked.id] = charge
        caller.charge = charge

    def finish(self, caller: KeyCaller, stats: RequestStats) -> None:
        """The client has its answer, or is gone."""
        charge = caller.charge
        if charge is None or charge.is_settled:
            return
        if charge.exchange is not None:  # `observe` follows: a long stream is read on a thread of its own
            asyncio.get_running_loop().call_later(SETTLE_WITHIN_S, self._give_up, charge)
            return
        usage = Usage(stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens)
        self._settle(charge, Amounts(1, _tokens(usage), _nano(self._local_cost(charge.model, usage))), is_known=True)

    def observe(self, request: ClientRequest, exchange: Exchange) -> None:
        """Settles a request, soon after its client has the answer."""
        charge = self._charges.get(request.id)
        if charge is None or charge.is_settled:
            return
        used, is_known = self._used(charge, exchange)
        self._settle(charge, used, is_known=is_known)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        """What was refused, and how often the store failed, for Prometheus."""
        refused = CounterMetricFamily("brise_keys_refused_requests", "Requests that a limit of a virtual key refused.",
                                      labels=("limit",))
        for limit, number in self.guard.refused.items():
            refused.add_metric((limit,), number)
        yield refused
        yield CounterMetricFamily("brise_keys_store_failures", "How often the store of virtual keys failed.",
                                  value=self.guard.num_failures)

    def _used(self, charge: Charge, exchange: Exchange) -> tuple[Amounts, bool]:
        """What an exchange has cost, and whether that is known."""
        usage, error = exchange.usage, exchange.error or ""
        is_refused = exchange.status >= 400 and exchange.status != 499 and (
            exchange.mode != "failed" or error.startswith(FREE_FAILURES))
        is_small = exchange.mode in ("small", "degraded")
        spent = Usage() if usage is None and (is_refused or is_small) else _filled(usage, charge.estimate)
        tokens = _tokens(spent)
        if exchange.cost_usd is not None:
            return Amounts(1, tokens, _nano(exchange.cost_usd)), True
        if is_refused:
            return Amounts(1, tokens), True
        if is_small:
            return Amounts(1, tokens, _nano(self._local_cost(exchange.served_by or "", spent))), True
        return Amounts(1, tokens, _nano(self._guess(charge.model, spent, charge.upstream))), False

    def _settle(self, charge: Charge, used: Amounts, *, is_known: bool) -> None:
        charge.is_settled = True
        self.guard.settle(charge.reservation, used, is_known=is_known)
        if charge.exchange is not None:
            del self._charges[charge.exchange]

    def _give_up(self, charge: Charge) -> None:
        if not charge.is_settled:
            usd = self._guess(charge.model, charge.estimate, charge.upstream)
            used = Amounts(1, _tokens(charge.estimate), _nano(usd))
            self._settle(charge, used, is_known=False)

    def _guess(self, model: str, usage: Usage, upstream: str) -> float:
        """USD for tokens of a large model: at its price there, or at the highest that there is."""
        known = self._prices.cost(None, model, usage, upstream)
        if known is not None:
            return known
        if self.guard.options.unknown_usd is not None:
            return self.guard.options.unknown_usd
        costs = [cost for name in self._prices.models if (cost := self._prices.cost(name, name, usage)) is not None]
        return max(costs, default=(usage.prompt_tokens or 0) * UNPRICED_INPUT_USD
                   + (usage.completion_tokens or 0) * UNPRICED_OUTPUT_USD)

    def _local_cost(self, model: str, usage: Usage) -> float:
        """USD for tokens of a model that runs here: nothing, unless it has a price."""
        return self._prices.cost(None, model, usage) or 0.0


def check_admin(caller: KeyCaller | None, scope: Scope) -> None:
    """Raises where a virtual key would see what others do, or change what is served."""
    method, path = scope["method"], scope["path"]
    if caller is None:
        return
    if path == METRICS or path.startswith(ADAPTERS) and method not in ("GET", "HEAD"):
        raise KeyForbiddenError(f"{method} {path[:200]} is not for virtual keys", code="key_not_allowed",
                                hint="a key of --api-keys may")


def check_models(key: VirtualKey, asked: ClientRequest, *, is_local: bool = False) -> None:
    """Raises if the key may not use one of the models that a request could mean. One of this server may have Ollama's
    tag behind its name."""
    method, path = asked.method, asked.path
    if key.limits.models is None or method in ("GET", "HEAD") and (path == LIST or path.startswith(f"{LIST}/")):
        return
    models = [name for name in dict.fromkeys((asked.model, *asked.named)) if name]
    allowed = ", ".join(key.limits.models)
    if not models or asked.times_named > 1:
        raise KeyForbiddenError(
            f"{method} {path[:200]} names {'a model twice' if models else 'no model'}; the API key {key.name!r} is for "
            f"{allowed}", param="model", code="model_not_allowed")
    for name in models:
        if not (key.limits.allows(name) or is_local and key.limits.allows(ollama.untagged(name))):
            raise KeyForbiddenError(
                f"the API key {key.name!r} is not for the model {name[:128]!r}; it is for {allowed}", param="model",
                code="model_not_allowed")


def estimate_of(fields: Body | None, num_bytes: int, *, is_embedding: bool = False) -> Usage:
    """What a request may take: its bytes, and the longest answer that it allows."""
    prompt, fields = min(num_bytes // BYTES_A_TOKEN, MOST_PROMPT), fields or {}
    options = fields.get("options")
    given = [fields.get(name) for name in LIMIT_FIELDS] + [
        options.get(OPTION_LIMIT) if isinstance(options, dict) else None]
    longest = next(filter(None, map(_count, given)), USUAL_ANSWER)
    answer = longest * (_count(fields.get("n")) or 1)
    return Usage(prompt, 0 if is_embedding else min(answer, MOST_ANSWER))


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _filled(usage: Usage | None, estimate: Usage) -> Usage:
    """The tokens that are known, and for the others what was expected, none of them from a cache."""
    if usage is None:
        return estimate
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is not None and completion is not None and usage.plain_prompt_tokens is not None:
        return usage
    return Usage(estimate.prompt_tokens if prompt is None else prompt,
                 estimate.completion_tokens if completion is None else completion)


def _tokens(usage: Usage) -> int:
    return min(max(usage.total_tokens or 0, 0), MOST_TOKENS)


def _nano(usd: float) -> int:
    return min(max(round(usd * NANO), 0), MOST_NANO_USD)
