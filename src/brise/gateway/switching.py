"""The parts of a gateway that let small models answer: they follow one ledger, and act on it together."""

from __future__ import annotations

import time
from typing import TextIO

from brise.gateway.asked import Asked
from brise.gateway.audit import Ask, Auditor
from brise.gateway.failure import UpstreamError
from brise.gateway.follow import Follower
from brise.gateway.gateway import Parts
from brise.gateway.hosted import Hosted
from brise.gateway.keep import SmallModel
from brise.gateway.local import LocalModels
from brise.gateway.parts import Capture, Served
from brise.gateway.records import Answer
from brise.gateway.route import SwitchRouter
from brise.gateway.shadow import again
from brise.gateway.store import Store
from brise.gateway.watch import Watch

# Failures that say nothing of the request. The others, such as no answer in time, may be this request's own.
OUT_OF_REACH = frozenset({"refused", "connect_timeout", "open"})


def parts(local: LocalModels, hosted: Hosted, store: Store, capture: Capture, log: TextIO | None = None) -> Parts:
    """Router, small model, audits, and the follower of the ledger behind them."""
    follower = Follower(store, log=log)
    auditor = Auditor(follower, _asker(hosted), lambda answer: capture.record(answers=(answer,)), log=log)
    return Parts(router=SwitchRouter(follower), small=SmallModel(local, follower, Watch(), log=log),
                 observers=(auditor,), background=(follower, auditor))


def _asker(hosted: Hosted) -> Ask:
    async def ask(asked: Asked, probability: float) -> Answer | None:
        started_s, at_s = time.monotonic(), time.time()
        try:
            served = await hosted.ask(asked)
        except UpstreamError as error:
            if error.failure.kind in OUT_OF_REACH or error.failure.status == 429:
                return None
            served = Served("failed", error.failure.client_status, error=str(error.failure))
        return again(served, asked, "audit", at_s, time.monotonic() - started_s, probability)

    return ask
