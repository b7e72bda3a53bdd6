"""What balancers ask: `/livez` and `/health` say what runs, `/readyz` whether requests are to come here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise import __version__
from brise.serve.replica import Replica
from brise.serve.serving import ServerState
from brise.traffic.servers import Status

Effect = Literal["degraded", "failed"]


@dataclass(frozen=True)
class Reason:
    """Why a server is not simply ready. `degraded`: it answers all the same, as far as it can."""

    code: str
    message: str
    effect: Effect = "failed"


async def health(serving: ServerState, request: Request) -> Response:
    """200 while new requests can be answered. It needs no key, so it names no models."""
    if serving.traffic.closed:
        return JSONResponse({"status": "draining"}, 503, {"Retry-After": "1"})
    if not all(worker.is_open for worker in serving.models.values()):
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


async def livez(serving: ServerState, request: Request) -> Response:
    """200 as long as the event loop runs: who gets no answer starts the process anew."""
    return JSONResponse({"status": "alive"})


async def readyz(serving: ServerState, request: Request) -> Response:
    """200 `ready` or `degraded`; 503 with the reasons if requests should go to another server. It needs no key; the
    models' names are for those who have one."""
    reasons = reasons_of(serving)
    status, replica = status_of(serving, reasons), serving.replica
    body: dict[str, object] = {
        "status": status, "version": __version__,
        "reasons": [{"code": reason.code, "message": reason.message} for reason in reasons]}
    if replica is not None:
        own = next((server for server in replica.servers if server.id == replica.id), None)
        body |= {"server": replica.name, "servers": sum(server.counts for server in replica.servers)}
        if own is not None and (not serving.has_keys or request.scope.get("brise.has_key")):
            body["fingerprints"] = dict(own.report.fingerprints)
    is_ready = status in ("ready", "degraded")
    return JSONResponse(body, 200 if is_ready else 503, None if is_ready else {"Retry-After": "1"})


def status_of(serving: ServerState, reasons: Sequence[Reason]) -> Status:
    """What the reasons come to."""
    if serving.traffic.closed:
        return "draining"
    if any(reason.effect == "failed" for reason in reasons):
        return "failed"
    return "degraded" if reasons else "ready"


def reasons_of(serving: ServerState) -> Sequence[Reason]:
    """Everything that stands against sending requests to this server."""
    reasons = []
    if serving.traffic.closed:
        reasons.append(Reason("draining", "the server shuts down"))
    dead = [name for name, worker in serving.models.items() if not worker.is_open]
    if dead and not serving.traffic.closed:
        reasons.append(Reason("engine", f"{len(dead)} of {len(serving.models)} engines have ended"))
    if serving.replica is not None:
        reasons += _of_replica(serving.replica)
    return reasons


def _of_replica(replica: Replica) -> Iterator[Reason]:
    """A store that is away is no reason to take a server out: it would be one for all of them at once."""
    if not replica.is_settled:
        yield Reason("joining", "it is still to look at the store, and to load what the other servers have")
    if replica.is_out_of_reach and replica.is_settled:
        yield Reason("store", replica.error or "the store does not answer", "degraded")
    if replica.ledger_fault is not None:
        yield Reason("ledger", f"the ledger is not whole: {replica.ledger_fault.reason}")
    for model, numbers in replica.odd.items():
        others = ", ".join(f"{number} with {fingerprint[:12]}" for fingerprint, number in numbers.items())
        yield Reason("fingerprint", f"{model!r} is another model here than on the servers beside it: {others}")
    for name, why in replica.not_loaded.items():
        yield Reason("adapter", f"the adapter {name!r}, which the other servers have, is not loaded: {why}", "degraded")
