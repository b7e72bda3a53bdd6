"""What this process serves, as the servers that share its store see it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from brise import __version__
from brise.errors import RequestError
from brise.serve import readiness
from brise.serve.engine_models import EngineModels
from brise.serve.serving import ServerState
from brise.switch.ledger_follower import Follower
from brise.traffic.ledger import Chain
from brise.traffic.servers import ServerReport, SharedAdapter


class ServedHere:
    """Implements `LocalServer`."""

    def __init__(self, serving: ServerState, models: EngineModels, address: str) -> None:
        self._serving, self._models, self._address = serving, models, address
        self._num_tokens, self._counted_s, self._tokens_per_s = 0, time.monotonic(), 0.0

    def report(self) -> ServerReport:
        serving, stats = self._serving, [worker.stats() for worker in self._serving.models.values()]
        reasons = readiness.reasons_of(serving)
        return ServerReport(
            __version__, self._address, readiness.status_of(serving, reasons),
            tuple(reason.code for reason in reasons), fingerprints(self._models),
            running=serving.traffic.num_running, waiting=sum(each.waiting for each in stats),
            tokens_per_s=self._speed(sum(each.completion_tokens for each in stats)))

    def chain(self) -> Chain | None:
        gateway = self._serving.gateway
        background = () if gateway is None else gateway.components.background
        return next((part.chain for part in background if isinstance(part, Follower)), None)

    def adapters(self) -> Mapping[str, str]:
        return {info.name: info.digest for worker in self._serving.models.values() for info in worker.adapters}

    async def load(self, adapter: SharedAdapter) -> str:
        serving = self._serving
        async with serving.adapters_change:
            if adapter.name in serving.models:
                raise RequestError(f"a model of this server has the name {adapter.name!r}")
            info = await asyncio.to_thread(partial(serving.base(adapter.model).add_adapter, adapter.name,
                                                   Path(adapter.path), any_base=adapter.any_base))
        return info.digest

    async def unload(self, name: str) -> None:
        serving = self._serving
        async with serving.adapters_change:
            for worker in serving.models.values():
                if worker.has_adapter(name):
                    worker.remove_adapter(name)
                    serving.metrics.forget(name)

    def _speed(self, num_tokens: int) -> float:
        now_s = time.monotonic()
        if now_s - self._counted_s >= 1.0:
            self._tokens_per_s = (num_tokens - self._num_tokens) / (now_s - self._counted_s)
            self._num_tokens, self._counted_s = num_tokens, now_s
        return round(self._tokens_per_s, 1)


def fingerprints(models: EngineModels) -> Mapping[str, str]:
    """The fingerprints of models and adapters by name; one that is unloaded at this moment has none."""
    found = dict[str, str]()
    for name in models.names():
        try:
            found[name] = models.fingerprint(name)
        except RequestError:
            continue
    return found


async def join(serving: ServerState, address: str) -> None:
    """Begins to be one of the servers that share the store, if there is one. Reads the models' files for that."""
    if serving.replica is not None:
        models = await asyncio.to_thread(EngineModels, serving.models)
        serving.replica.join(ServedHere(serving, models, address), address)
