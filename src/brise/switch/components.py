"""The parts of a gateway that let small models answer: they follow one ledger, and act on it together."""

from __future__ import annotations

import time
from typing import TextIO

from brise.gateway.exchange import answer_of
from brise.gateway.failure import UpstreamError
from brise.gateway.gateway import Components
from brise.gateway.interfaces import CaptureSink, RequestOutcome
from brise.gateway.reanswer import request_of
from brise.gateway.request import ClientRequest
from brise.gateway.small_models import SmallModels
from brise.gateway.upstreams import Upstreams
from brise.switch.audit import Ask, Auditor
from brise.switch.drift import DriftWatch
from brise.switch.ledger_follower import Follower
from brise.switch.route import SwitchRouter
from brise.switch.shared_audits import Rows, SharedAudits
from brise.switch.small_model import SmallModel
from brise.traffic.records import Exchange, RecordedAnswer
from brise.traffic.servers import Membership
from brise.traffic.store import TrafficStore

# Failures that say nothing of the request. The others, such as no answer in time, may be this request's own.
OUT_OF_REACH = frozenset({"refused", "connect_timeout", "open", "limited"})


def switch_components(small: SmallModels, large: Upstreams, store: TrafficStore, capture: CaptureSink,
                      log: TextIO | None = None, member: Membership | None = None,
                      rows: Rows | None = None) -> Components:
    """Router, small model, audits, and the follower of the ledger behind them."""
    member = member or Membership()
    follower = Follower(store, member.now_s, log, leads=member.leads)
    shared = None if rows is None else SharedAudits(rows, member, lambda id: _rebuilt(id, large, store))
    auditor = Auditor(follower, _asker(large), lambda answer: capture.record(answers=(answer,)), log=log,
                      shared=shared)
    return Components(router=SwitchRouter(follower, member.now_s),
                      small=SmallModel(small, follower, DriftWatch(), member.now_s, log=log),
                      observers=(auditor,), background=(follower, auditor))


def _rebuilt(id: str, large: Upstreams, store: TrafficStore) -> tuple[ClientRequest, Exchange] | None:
    """A kept request from the store, if it can be asked again: its client's own key is gone."""
    exchange = store.exchange(id)
    if exchange is None or exchange.request is None or not large.pays(exchange.upstream):
        return None
    return request_of(exchange, large.secrets), exchange


def _asker(large: Upstreams) -> Ask:
    async def ask(request: ClientRequest, probability: float) -> RecordedAnswer | None:
        started_s, at_s = time.monotonic(), time.time()
        try:
            outcome = await large.ask(request)
        except UpstreamError as error:
            if error.failure.kind in OUT_OF_REACH or error.failure.status == 429:
                return None
            outcome = RequestOutcome("failed", error.failure.client_status, error=str(error.failure))
        return answer_of(request, "audit", at_s, outcome, time.monotonic() - started_s, probability=probability)

    return ask
