"""What the tab Machine shows: plans, models, adapters, upstreams, keys with budgets, and the servers of the store.

Everything is read anew each time, and as the commands say it: `brise plan`, `brise keys list`, `brise servers`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from brise import settings
from brise.engine.engine_thread import EngineThread
from brise.errors import BriseError, StoreError
from brise.gateway.breaker import BreakerState
from brise.memory import limit, process, rendering, serving_plan
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.page.documents import parts_json
from brise.page.endpoint import PageEndpoint, PageOptions, PageRequest
from brise.report.document import Cell, Code, Mark, Note, Part, ReportTable, Status
from brise.serve.serving import ServerState
from brise.traffic.key_budgets import listed
from brise.traffic.servers import SeenServer
from brise.traffic.stores import open_virtual_keys

DIGITS = 12  # of a digest
GOOD = Mark("good", "answers")
BREAKER: Mapping[BreakerState, Mark] = MappingProxyType({
    "closed": Mark("good", "in use"), "open": Mark("bad", "left alone"), "half-open": Mark("unsure", "being tried")})
SERVER: Mapping[str, Status] = MappingProxyType({
    "ready": "good", "degraded": "unsure", "failed": "bad", "draining": "unsure", "gone": "bad"})


@dataclass
class Plans:
    """The plans of models; one that has no memory limit is planned from its file's header, once."""

    options: PageOptions
    _made: dict[tuple[str, int], ServingPlan | None] = field(default_factory=dict)

    def of(self, name: str, worker: EngineThread) -> ServingPlan | None:
        """The plan of a model that is served; None if its file is gone."""
        if name in self.options.plans:
            return self.options.plans[name]
        place = (name, id(worker))
        if place not in self._made:
            self._made[place] = _planned(worker)
        return self._made[place]


def endpoints(options: PageOptions) -> Sequence[PageEndpoint]:
    """The endpoint of the tab."""
    return (PageEndpoint("machine", partial(_machine, options, Plans(options)), is_slow=True),)


def _machine(options: PageOptions, plans: Plans, request: PageRequest) -> object:
    serving = request.serving
    sections = [("Models", _models(serving)), ("Adapters", _adapters(serving)), ("Upstreams", _upstreams(serving)),
                ("Small models on other servers", _remote(serving)), ("Keys", _keys(options)),
                ("Servers that share the store", _servers(serving))]
    return {"peak": rendering.size(process.peak_bytes()), "plans": [
        _plan(plan) for name, worker in serving.models.items() if (plan := plans.of(name, worker)) is not None],
        "sections": [{"title": title, "parts": parts_json(parts)} for title, parts in sections if parts]}


def _planned(worker: EngineThread) -> ServingPlan | None:
    model = worker.model
    request = MemoryRequest(context=worker.max_context, cache=worker.cache_format, answers=worker.max_sequences,
                            max_draft=worker.max_draft)
    try:
        device = str(model.backend.facts().get("selector", "cpu"))
        plan = limit.plan_serving(str(model.path), request, weights=model.requantized, device=device).plan
    except (BriseError, OSError):
        return None
    return replace(plan, model=model.name, pages=worker.stats().pages)


def _plan(plan: ServingPlan) -> dict[str, Any]:
    """The terms of the sum, as `brise plan` names and adds them; the bar's whole is the limit, or the sum."""
    return {"model": plan.model, "headline": serving_plan.headline(plan), "fits": plan.fits,
            "whole": max(plan.limit or 0, plan.total_bytes), "limit": plan.limit, "terms": [
                {"letter": letter, "name": name, "format": kind, "bytes": nbytes, "size": rendering.size(nbytes)}
                for letter, name, kind, nbytes in serving_plan.terms(plan)]}


def _models(serving: ServerState) -> Sequence[Part]:
    rows = []
    for name, worker in serving.models.items():
        stats = worker.stats()
        rows.append((name, worker.model.path.name, worker.model.weight_format or "", worker.model.device,
                     str(worker.max_context), f"{stats.running} run, {stats.waiting} wait",
                     f"{stats.pages - stats.pages_free} of {stats.pages}",
                     GOOD if worker.is_open else Mark("bad", "stopped")))
    return _table(("model", "file", "weights", "runs on", "context", "answers", "pages in use", "state"), rows, (4,))


def _adapters(serving: ServerState) -> Sequence[Part]:
    return _table(("adapter", "of", "rank", "size", "in memory", "in use", "digest"), [
        (info.name, model, str(info.rank), rendering.size(info.nbytes), "yes" if info.is_resident else "no",
         str(info.users), Code(info.digest[:DIGITS])) for model, worker in serving.models.items()
        for info in worker.adapters], (2, 3, 5))


def _upstreams(serving: ServerState) -> Sequence[Part]:
    """With the state of the circuit breaker; a URL without what may be secret in it."""
    if serving.gateway is None:
        return ()
    rows = []
    for name, large in serving.gateway.large.each.items():
        url, alone = urlsplit(large.upstream.settings.url), large.breaker.open_models()
        failures = ", ".join(f"{kind} {number}" for kind, number in sorted(large.failures.copy().items()))
        rate = "" if large.rate is None else f"{large.rate.per_minute} a minute, {large.rate.num_limited} held back"
        rows.append((name or url.netloc.rpartition("@")[2], f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}",
                     BREAKER[large.breaker.state], ", ".join(alone) or "none", failures or "none", rate or "none"))
    return _table(("upstream", "URL", "state", "models left alone", "failures since the start", "rate limit"), rows)


def _remote(serving: ServerState) -> Sequence[Part]:
    if serving.remote is None:
        return ()
    rows = list[tuple[Cell, ...]]()
    for name in serving.remote.names():
        card = serving.remote.card(name)
        why = card.get("unavailable")
        rows.append((name, str(card.get("parent", "")), str(card.get("engine", "")),
                     Code(str(card.get("fingerprint", ""))[:DIGITS]),
                     GOOD if why is None else Mark("bad", str(why))))
    return _table(("model", "there", "engine", "fingerprint", "state"), rows)


def _keys(options: PageOptions) -> Sequence[Part]:
    """The virtual keys with what they may and have used; of the keys themselves the store has only a digest."""
    now_s = time.time()
    try:
        keys, budgets = open_virtual_keys(options.store, settings.read().home, must_exist=True)
    except StoreError:  # there is no store yet
        return ()
    with closing(keys):
        found = [listed(key, budgets.use(key.id, now_s), now_s) for key in keys.all()]
    rows: list[tuple[Cell, ...]] = [
        (key["name"], Mark("good" if key["state"] == "active" else "bad", key["state"]),
         _of(key["day"]["usd"], key["limits"]["usd_per_day"]), _of(key["month"]["usd"], key["limits"]["usd_per_month"]),
         f"{key['minute']['requests']}{_most(key['limits']['requests_per_minute'])}",
         ", ".join(key["limits"]["models"] or ("all",)), ", ".join(key["limits"]["page"] or ("nothing",)))
        for key in found]
    if not rows:
        return (Note("There are no virtual keys: brise keys add NAME makes one, with a budget of its own."),)
    return _table(("key", "state", "USD today", "USD this month", "requests this minute", "models", "on the page"),
                  rows, (2, 3, 4))


def _of(usd: float, most: float | None) -> str:
    return f"{usd:.4f}{_most(most)}"


def _most(most: float | None) -> str:
    return "" if most is None else f" of {most:g}"


def _servers(serving: ServerState) -> Sequence[Part]:
    """The replicas, as `brise servers` has them; none where the store is for one server."""
    replica = serving.replica
    if replica is None:
        return ()
    notes = () if replica.error is None else (Note(f"The store does not answer: {replica.error}"),)
    return (*_table(("server", "version", "status", "requests", "waiting", "tokens/s", "models", "seen"),
                    list(map(server_row, replica.servers)), (3, 4, 5)), *notes)


def server_row(server: SeenServer) -> tuple[Cell, ...]:
    """One of the servers that share the store."""
    report, status = server.report, "gone" if server.is_gone else server.report.status
    words = [status] if server.is_gone else [status, *report.reasons, *(("leads",) if report.leads else ())]
    return (server.name, report.version, Mark(SERVER[status], ", ".join(words)), str(report.running),
            str(report.waiting), f"{report.tokens_per_s:.1f}", ", ".join(
                f"{name} {digest[:DIGITS]}" for name, digest in sorted(report.fingerprints.items())) or "none",
            f"{server.age_s:.0f} s ago")


def _table(columns: Sequence[str], rows: Sequence[tuple[Cell, ...]], numeric: Sequence[int] = ()) -> Sequence[Part]:
    return (ReportTable(tuple(columns), tuple(rows), tuple(numeric)),) if rows else ()
